"""Read and write FlatTensor data files (`.ptd`) without ExecuTorch.

The format is ExecuTorch 1.5.1's `extension/flat_tensor/serialize` (schema `flat_tensor.fbs`, `serialize.py`): a
flatbuffer with an inserted header, then 128-byte aligned segments. The writer lays fields out in the order that `flatc`
does, so that its bytes equal ExecuTorch's own serializer's; a test holds the two against each other.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import attrs
import flatbuffers

from lora_core.errors import BundleError
from lora_core.pte import Buffer, aligned, container_parts, segment_offsets
from lora_core_xnnpack.files.named_blobs import NamedBlob, TensorLayout, named_blobs

_HEADER_LENGTH = 40  # FlatTensorHeader.EXPECTED_LENGTH
_PADDED_HEADER = 48  # rounded up to the flatbuffer's alignment of 16
_PADDING = 128  # segments begin at its multiples
_HEADER = struct.Struct("<4sIQQQQ")
_REMEMBERED = 1 << 20
"""The longest front of a file whose tables are remembered: 0.1 MB is that of an adapter of 420 matrices."""


@attrs.frozen(kw_only=True)
class DataBlob:
    """One named blob: its `key`, its `data`, and its `layout` where it is a tensor that kernels read by name.

    `digest` is the SHA-256 hex of the data; a content key is that by itself. Blobs of one digest are stored once.
    """

    key: str
    data: Buffer
    digest: str
    layout: TensorLayout | None = None

    @classmethod
    def under_content_key(cls, data: Buffer) -> DataBlob:
        """Return `data` under the key that ExecuTorch gives XNNPACK constants: the SHA-256 hex of the bytes."""
        digest = hashlib.sha256(data).hexdigest()
        return cls(key=digest, data=data, digest=digest)


def _table_vector(builder: flatbuffers.Builder, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


# flatc adds a table's fields from large to small and, within a size, from the last to the first (idl_parser.cpp).
def _segment_table(builder: flatbuffers.Builder, offset: int, size: int) -> int:
    builder.StartObject(2)
    builder.PrependUint64Slot(1, size, 0)
    builder.PrependUint64Slot(0, offset, 0)
    return int(builder.EndObject())


def _layout_table(builder: flatbuffers.Builder, layout: TensorLayout) -> int:
    builder.StartVector(4, len(layout.sizes), 4)
    for size in reversed(layout.sizes):
        builder.PrependInt32(size)
    sizes = builder.EndVector()
    builder.StartVector(1, len(layout.dim_order), 1)
    for dim in reversed(layout.dim_order):
        builder.PrependUint8(dim)
    order = builder.EndVector()
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(2, order, 0)
    builder.PrependUOffsetTRelativeSlot(1, sizes, 0)
    builder.PrependInt8Slot(0, layout.scalar_type, 0)
    return int(builder.EndObject())


def _named_table(builder: flatbuffers.Builder, blob: DataBlob, segment: int) -> int:
    name = builder.CreateString(blob.key)
    layout = None if blob.layout is None else _layout_table(builder, blob.layout)
    builder.StartObject(3)
    if layout is not None:
        builder.PrependUOffsetTRelativeSlot(2, layout, 0)
    builder.PrependUint32Slot(1, segment, 0)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    return int(builder.EndObject())


@lru_cache(maxsize=64)
def _keyless_flatbuffer(segments: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[bytes, tuple[int, ...]]:
    """Return the flatbuffer of blobs under content keys, and where each key belongs.

    `segments` are the blobs' segments, `sizes` those of the segments in bytes. Adapters of one shape share it: only the
    keys differ, and they are all of one length.
    """
    keys = [f"{index:064x}" for index in range(len(segments))]
    blobs = [DataBlob(key=key, data=b"", digest=str(segment)) for key, segment in zip(keys, segments, strict=True)]
    placed = {str(segment): segment for segment in segments}
    flatbuffer = _flatbuffer(blobs, placed, segment_offsets(sizes), sizes)
    return flatbuffer, tuple(flatbuffer.index(key.encode("ascii")) for key in keys)


def _tables(blobs: Sequence[DataBlob], placed: Mapping[str, int], sizes: Sequence[int]) -> bytes:
    if not all(blob.key == blob.digest and blob.layout is None for blob in blobs):
        return _flatbuffer(blobs, placed, segment_offsets(sizes), sizes)
    keyless, positions = _keyless_flatbuffer(tuple(placed[blob.digest] for blob in blobs), tuple(sizes))
    flatbuffer = bytearray(keyless)
    for blob, position in zip(blobs, positions, strict=True):
        flatbuffer[position : position + len(blob.key)] = blob.key.encode("ascii")
    return bytes(flatbuffer)


def _flatbuffer(
    blobs: Sequence[DataBlob], placed: Mapping[str, int], offsets: Sequence[int], sizes: Sequence[int]
) -> bytes:
    builder = flatbuffers.Builder(1024 + 160 * len(blobs))
    spans = zip(offsets, sizes, strict=True)
    segments = _table_vector(builder, [_segment_table(builder, offset, size) for offset, size in spans])
    named = _table_vector(builder, [_named_table(builder, blob, placed[blob.digest]) for blob in blobs])
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(2, named, 0)
    builder.PrependUOffsetTRelativeSlot(1, segments, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"FT01")
    return bytes(builder.Output())


def front(blobs: Sequence[DataBlob], placed: Mapping[str, int], sizes: Sequence[int]) -> bytes:
    """Return what stands in a data file before its first segment, padded up to it.

    `placed` has the segment of each of the blobs' digests, `sizes` the segments' bytes; the blobs' data is not read.
    """
    offsets = segment_offsets(sizes)
    flatbuffer = _tables(blobs, placed, sizes)
    base = aligned(len(flatbuffer) + _PADDED_HEADER)
    total = offsets[-1] + sizes[-1] if sizes else 0
    root = struct.pack("<I", struct.unpack_from("<I", flatbuffer)[0] + _PADDED_HEADER)
    header = _HEADER.pack(b"FH01", _HEADER_LENGTH, _PADDED_HEADER, len(flatbuffer), base, total)
    return (root + flatbuffer[4:8] + header.ljust(_PADDED_HEADER, b"\0") + flatbuffer[8:]).ljust(base, b"\0")


def serialize(blobs: Sequence[DataBlob]) -> list[Buffer]:
    """Return a data file as a list of buffers to be written one after another; the keys must be distinct."""
    placed: dict[str, int] = {}
    stored: list[Buffer] = []
    for blob in blobs:
        if blob.digest not in placed:
            placed[blob.digest] = len(stored)
            stored.append(blob.data)
    return container_parts(front(blobs, placed, [len(data) for data in stored]), stored)


def _require_named(data: Buffer, front: int, blobs: Sequence[NamedBlob]) -> None:
    """Raise `ValueError` if the file holds more than its flatbuffer, named blobs and padding between them: bytes that
    no name stands for would be missing from every count of what is stored.
    """
    end = front
    for blob in sorted(blobs, key=lambda each: (each.offset, each.size)):
        if blob.offset - end >= _PADDING:
            raise ValueError(f"{blob.offset - end} bytes before {blob.key!r} have no name")
        end = max(end, blob.offset + blob.size)
    if len(data) - end >= _PADDING:
        raise ValueError(f"the last {len(data) - end} bytes have no name")


@lru_cache(maxsize=16)
def _named(front: bytes, base: int, length: int) -> tuple[NamedBlob, ...]:
    """Return the blobs of a file of `length` bytes that begins with `front`: that of all adapters of one shape."""
    return tuple(named_blobs(front, base, segments_field=1, named_field=2, length=length))


def stored_blobs(data: Buffer, path: Path) -> list[NamedBlob]:
    """List the named blobs of a data file; offsets are from the file's start.

    Raises `BundleError` naming `path` if the file is not a FlatTensor file or points outside of itself.
    """
    try:
        magic, _, start, size, base, _ = _HEADER.unpack_from(data, 8)
        if bytes(data[4:8]) != b"FT01" or magic != b"FH01":
            raise ValueError("no FlatTensor header")
        if base <= _REMEMBERED:
            blobs = list(_named(bytes(data[:base]), base, len(data)))
        else:
            blobs = named_blobs(data, base, segments_field=1, named_field=2)
        _require_named(data, start + size, blobs)
        return blobs
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise BundleError(
            f"{path.name} is not a whole ExecuTorch data file: {error}.",
            where=str(path),
            remedy="Export the bundle again, or restore the file from a copy.",
        ) from error
