"""Read what an ExecuTorch file stores by name: the tables that FlatTensor data files and programs have in common."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.errors import BundleError
from lora_core.intake.files import open_regular
from lora_core.pte import Buffer

# Far above what honest files have: a base has some hundred stored tensors, each under a name of some dozen characters.
_TABLES = 100_000
_LONGEST = 1024
_DIMENSIONS = 64

_WORD = struct.Struct("<I").unpack_from
_SIGNED = struct.Struct("<i").unpack_from
_SHORT = struct.Struct("<H").unpack_from


@attrs.frozen(kw_only=True)
class TensorLayout:
    """How a stored tensor lies in memory: ExecuTorch's scalar type, its sizes, and its dimensions from outer to inner
    (`exir/tensor_layout.py`).
    """

    scalar_type: int
    sizes: tuple[int, ...]
    dim_order: tuple[int, ...]


@attrs.frozen(kw_only=True)
class NamedBlob:
    """One named blob of a file: where its bytes lie, from the file's start; `layout` only in data files."""

    key: str
    offset: int
    size: int
    layout: TensorLayout | None = None


def field(data: Buffer, table: int, index: int) -> int:
    """Return the position of a flatbuffer table's field, 0 if the table does not have it."""
    vtable = table - _SIGNED(data, table)[0]
    slot = 4 + 2 * index
    if slot >= _SHORT(data, vtable)[0]:
        return 0
    relative = int(_SHORT(data, vtable + slot)[0])
    return table + relative if relative else 0


def tables(data: Buffer, table: int, index: int) -> Sequence[int]:
    """Return the positions of the tables of a vector field."""
    at = field(data, table, index)
    if not at:
        return ()
    start = at + int(_WORD(data, at)[0])
    count = int(_WORD(data, start)[0])
    if count > min((len(data) - start) // 4, _TABLES):
        raise ValueError(f"a vector says that it has {count} tables")
    relative = struct.unpack_from(f"<{count}I", data, start + 4)
    return [
        position + offset for position, offset in zip(range(start + 4, start + 4 + 4 * count, 4), relative, strict=True)
    ]


def number(data: Buffer, table: int, index: int, code: str) -> int:
    """Return an unsigned integer field (`struct` code), 0 if it is left at its default."""
    at = field(data, table, index)
    return int(struct.unpack_from(code, data, at)[0]) if at else 0


def text(data: Buffer, table: int, index: int) -> str:
    """Return a string field."""
    at = field(data, table, index)
    start = at + _WORD(data, at)[0]
    length = _WORD(data, start)[0]
    if length > min(len(data) - start - 4, _LONGEST):
        raise ValueError(f"a name says that it has {length} bytes")
    return bytes(data[start + 4 : start + 4 + length]).decode("utf-8")


def numbers(data: Buffer, table: int, index: int, code: str) -> tuple[int, ...]:
    """Return a vector of integers (`struct` code of one)."""
    at = field(data, table, index)
    if not at:
        return ()
    start = at + int(struct.unpack_from("<I", data, at)[0])
    count = int(struct.unpack_from("<I", data, start)[0])
    if count > _DIMENSIONS:
        raise ValueError(f"a tensor says that it has {count} dimensions")
    return struct.unpack_from(f"<{count}{code}", data, start + 4)


def _layout(data: Buffer, named: int) -> TensorLayout | None:
    at = field(data, named, 2)
    if not at:
        return None
    table = at + struct.unpack_from("<I", data, at)[0]
    return TensorLayout(
        scalar_type=number(data, table, 0, "<b"),
        sizes=numbers(data, table, 1, "i"),
        dim_order=numbers(data, table, 2, "B"),
    )


def named_blobs(
    data: Buffer, base: int, *, segments_field: int, named_field: int, length: int | None = None
) -> list[NamedBlob]:
    """List the named blobs of a file whose root table has these fields; segments start at `base`.

    With the file's `length`, `data` need be no more than what stands before the first of them. Raises `ValueError`,
    `struct.error` or `IndexError` if the file is not whole.
    """
    root = struct.unpack_from("<I", data)[0]
    segments = [
        (number(data, table, 0, "<Q"), number(data, table, 1, "<Q")) for table in tables(data, root, segments_field)
    ]
    blobs = []
    for table in tables(data, root, named_field):
        key = text(data, table, 0)
        offset, size = segments[number(data, table, 1, "<I")]
        if base + offset + size > (len(data) if length is None else length):
            raise ValueError(f"blob {key} ends behind the end of the file")
        blobs.append(NamedBlob(key=key, offset=base + offset, size=size, layout=_layout(data, table)))
    return blobs


def named_strings(data: Buffer) -> set[bytes]:
    """Return all that a program may name as a whole flatbuffer string, in its plans or a delegate's payload."""
    found = ((int.from_bytes(match[1], "little"), match[2]) for match in _STRING.finditer(data))
    return {text for length, text in found if length == len(text)}


# Looked for at every byte: a length is no part of the string before it, though it may look like its end.
_STRING = re.compile(rb"(?=(..\x00\x00)([^\x00]{1,%d})\x00)" % _LONGEST, re.DOTALL)


def content_keys(payload: Buffer) -> set[bytes]:
    """Return the keys of constants that a delegate's payload names: hashes, by which XNNPACK finds all of them."""
    return {match[1] or match[2] for match in _CONTENT_KEYS.finditer(payload)}


# Each begins with its length, by which the search is fast.
_CONTENT_KEYS = re.compile(rb"\x40\x00\x00\x00([0-9a-f]{64})\x00|\x46\x00\x00\x00(scale_[0-9a-f]{64})\x00", re.DOTALL)


def string_bytes(text: bytes) -> bytes:
    """Return `text` as a flatbuffer stores a string, so that a search for it does not find it inside a longer one."""
    return struct.pack("<I", len(text)) + text + b"\0"


def mapped(path: Path) -> mmap.mmap:
    """Map a file for reading; raises `BundleError` if it cannot be read or is empty."""
    try:
        with open_regular(path, BundleError, links=False) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BundleError(
            f"Cannot read {path.name}: {error}.",
            where=str(path),
            remedy="Export the bundle again, or restore the file from a copy.",
        ) from error
