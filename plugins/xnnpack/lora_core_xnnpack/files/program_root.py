"""The root table of a program's flatbuffer: its segments, its named data, and what refers to segments beside plans.

Field numbers are those of `Program` in `exir/_serialize/program.fbs` of ExecuTorch 1.5.1.
"""

from __future__ import annotations

import struct
from pathlib import Path

import attrs

from lora_core.errors import BundleError
from lora_core.pte import Buffer, ContainerHeader
from lora_core_xnnpack.files.named_blobs import NamedBlob, field, number, tables, text

PLANS, CONSTANTS, DELEGATE_DATA = 1, 2, 3
_SEGMENTS, _CONSTANT_SEGMENT, _MUTABLE_SEGMENTS, _NAMED = 4, 5, 6, 7
NOT_WHOLE = (struct.error, ValueError, IndexError, KeyError, TypeError, AssertionError, OverflowError, RecursionError)
"""What reading a damaged program raises."""


@attrs.frozen(kw_only=True)
class SegmentOffsets:
    """A table of offsets into one segment (flatbuffer table `SubsegmentOffsets`)."""

    segment: int
    offsets: tuple[int, ...]


@attrs.frozen(kw_only=True, eq=False)
class ProgramRoot:
    """The root table of the program file `data`: `position` is the table's, `spans` are (offset, size) of the segments
    from the file's start, `named` the keys of named data with their segments.
    """

    data: Buffer
    header: ContainerHeader
    position: int
    spans: tuple[tuple[int, int], ...]
    named: tuple[tuple[str, int], ...]
    version: int
    file_identifier: bytes
    constant_segment: SegmentOffsets | None
    mutable_segments: tuple[SegmentOffsets, ...] | None

    @classmethod
    def read(cls, data: Buffer) -> ProgramRoot:
        """Read the root of a whole program file; raises one of `NOT_WHOLE`."""
        header = ContainerHeader.read(data)
        header.require_all(len(data))
        root = struct.unpack_from("<I", data)[0]
        base = header.segment_base
        spans = tuple(
            (base + number(data, at, 0, "<Q"), number(data, at, 1, "<Q")) for at in tables(data, root, _SEGMENTS)
        )
        if any(start + size > len(data) for start, size in spans):
            raise ValueError("a segment ends behind the end of the file")
        mutable = tuple(_offsets(data, at) for at in tables(data, root, _MUTABLE_SEGMENTS))
        return cls(
            data=data,
            header=header,
            position=root,
            spans=spans,
            named=tuple((text(data, at, 0), number(data, at, 1, "<I")) for at in tables(data, root, _NAMED)),
            version=number(data, root, 0, "<I"),
            file_identifier=bytes(data[4:8]),
            constant_segment=_offsets(data, target(data, root, _CONSTANT_SEGMENT))
            if field(data, root, _CONSTANT_SEGMENT)
            else None,
            mutable_segments=mutable if field(data, root, _MUTABLE_SEGMENTS) else None,
        )

    def segments(self) -> list[memoryview]:
        """Return the bytes of all segments, without copying them."""
        view = memoryview(self.data)
        return [view[start : start + size] for start, size in self.spans]


def program_blobs(data: Buffer, path: Path) -> list[NamedBlob]:
    """List the named data inside a program file; raises `BundleError` if it is not a whole program."""
    try:
        root = ProgramRoot.read(data)
        spans = [(key, *root.spans[index]) for key, index in root.named]
    except NOT_WHOLE as error:
        raise damaged(path, error) from error
    return [NamedBlob(key=key, offset=offset, size=size) for key, offset, size in spans]


def damaged(path: Path, error: Exception) -> BundleError:
    """Return the error for a program file that is not whole."""
    return BundleError(
        f"{path.name} is not a whole ExecuTorch program: {error}.",
        where=str(path),
        remedy="Export the bundle again, or restore the file from a copy.",
    )


def target(data: Buffer, table: int, index: int) -> int:
    """Return the position of what a field refers to; raises `ValueError` if the table does not have the field."""
    at = field(data, table, index)
    if not at:
        raise ValueError(f"its root has no field {index}")
    return at + int(struct.unpack_from("<I", data, at)[0])


def _offsets(data: Buffer, table: int) -> SegmentOffsets:
    offsets: tuple[int, ...] = ()
    if field(data, table, 1):
        vector = target(data, table, 1)
        count = struct.unpack_from("<I", data, vector)[0]
        if count > (len(data) - vector) // 8:
            raise ValueError(f"a vector says that it has {count} offsets")
        offsets = struct.unpack_from(f"<{count}Q", data, vector + 4)
    return SegmentOffsets(segment=number(data, table, 0, "<I"), offsets=offsets)
