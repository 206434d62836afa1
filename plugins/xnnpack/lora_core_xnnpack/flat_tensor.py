"""Read and write FlatTensor data files (`.ptd`) without ExecuTorch.

The format is ExecuTorch 1.5.1's `extension/flat_tensor/serialize` (schema `flat_tensor.fbs`, `serialize.py`): a
flatbuffer with an inserted header, then 128-byte aligned segments. The writer lays fields out in the order that `flatc`
does, so that its bytes equal ExecuTorch's own serializer's; a test holds the two against each other.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path

import attrs
import flatbuffers

from lora_core.errors import BundleError
from lora_core_xnnpack.named_blobs import Buffer, StoredBlob, named_blobs

SEGMENT_ALIGNMENT = 128
_HEADER_LENGTH = 40  # FlatTensorHeader.EXPECTED_LENGTH
_PADDED_HEADER = 48  # rounded up to the flatbuffer's alignment of 16
_HEADER = struct.Struct("<4sIQQQQ")


@attrs.frozen(kw_only=True)
class DataBlob:
    """One named blob: `key`, `alignment` of its segment in bytes, its `data`, or `data_size` where it is not read."""

    key: str
    alignment: int
    data: Buffer


def aligned(offset: int, alignment: int) -> int:
    """Return `offset` rounded up to `alignment`."""
    return -(-offset // alignment) * alignment


def layout_segments(sizes: Sequence[int], alignments: Sequence[int]) -> list[int]:
    """Return the offset of each segment, in bytes from the segment base, for segments laid one after another."""
    offsets: list[int] = []
    end = 0
    for size, alignment in zip(sizes, alignments, strict=True):
        offset = aligned(end, math.lcm(SEGMENT_ALIGNMENT, alignment))
        offsets.append(offset)
        end = offset + size
    return offsets


def _table_vector(builder: flatbuffers.Builder, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def _flatbuffer(keys: Sequence[str], offsets: Sequence[int], sizes: Sequence[int]) -> bytes:
    # flatc adds a table's fields from large to small and, within a size, from the last to the first (idl_parser.cpp).
    builder = flatbuffers.Builder(1024 + 160 * len(keys))
    segments = []
    for offset, size in zip(offsets, sizes, strict=True):
        builder.StartObject(2)
        builder.PrependUint64Slot(1, size, 0)
        builder.PrependUint64Slot(0, offset, 0)
        segments.append(builder.EndObject())
    segment_vector = _table_vector(builder, segments)
    named = []
    for index, key in enumerate(keys):
        name = builder.CreateString(key)
        builder.StartObject(3)
        builder.PrependUint32Slot(1, index, 0)
        builder.PrependUOffsetTRelativeSlot(0, name, 0)
        named.append(builder.EndObject())
    named_vector = _table_vector(builder, named)
    builder.StartObject(3)
    builder.PrependUOffsetTRelativeSlot(2, named_vector, 0)
    builder.PrependUOffsetTRelativeSlot(1, segment_vector, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"FT01")
    return bytes(builder.Output())


def serialize(blobs: Sequence[DataBlob]) -> list[Buffer]:
    """Return a data file as a list of buffers to be written one after another.

    Keys must be distinct, and so must the data: deduplicate before (content keys do it by themselves).
    """
    sizes = [len(blob.data) for blob in blobs]
    offsets = layout_segments(sizes, [blob.alignment for blob in blobs])
    flatbuffer = _flatbuffer([blob.key for blob in blobs], offsets, sizes)
    base = aligned(len(flatbuffer) + _PADDED_HEADER, SEGMENT_ALIGNMENT)
    total = offsets[-1] + sizes[-1] if blobs else 0
    root = struct.pack("<I", struct.unpack_from("<I", flatbuffer)[0] + _PADDED_HEADER)
    header = _HEADER.pack(b"FH01", _HEADER_LENGTH, _PADDED_HEADER, len(flatbuffer), base, total)
    head = root + flatbuffer[4:8] + header.ljust(_PADDED_HEADER, b"\0") + flatbuffer[8:]
    parts: list[Buffer] = [head.ljust(base, b"\0")]
    end = 0
    for blob, offset, size in zip(blobs, offsets, sizes, strict=True):
        parts += [bytes(offset - end), blob.data]
        end = offset + size
    return parts


def stored_blobs(data: Buffer, path: Path) -> list[StoredBlob]:
    """List the named blobs of a data file; offsets are from the file's start.

    Raises `BundleError` naming `path` if the file is not a FlatTensor file or points outside of itself.
    """
    try:
        magic, _, _, _, base, _ = _HEADER.unpack_from(data, 8)
        if bytes(data[4:8]) != b"FT01" or magic != b"FH01":
            raise ValueError("no FlatTensor header")
        blobs = named_blobs(data, base, segments_field=1, named_field=2)
    except (struct.error, ValueError, IndexError) as error:
        raise BundleError(
            f"{path.name} is not a whole ExecuTorch data file: {error}.",
            where=str(path),
            remedy="Export the bundle again, or restore the file from a copy.",
        ) from error
    return blobs
