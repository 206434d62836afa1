"""The parts of a program file (`.pte`) that linking rebuilds, as ExecuTorch 1.5.1 lays them out.

A program is a flatbuffer with an inserted header, then 128-byte aligned segments (`exir/_serialize/_program.py`).
Flatbuffers grow towards the front, and ExecuTorch packs the execution plans first; so all that depends on segments
and named data (their tables, and the root) stands before the plans, which stay as they are: the *tail*. `ProgramTail`
is the tail with the state that a flatbuffer builder had after writing it, enough to write the front anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import attrs
import flatbuffers

from lora_core.pte import Buffer, aligned, container_front, container_parts, segment_offsets
from lora_core_xnnpack.files.program_root import SegmentOffsets


@attrs.frozen(kw_only=True)
class ProgramTail:
    """Execution plans as packed bytes, and the builder's state behind them.

    `vectors` are the builder offsets of the vectors execution_plan, constant_buffer and backend_delegate_data;
    `vtables` maps a vtable's key to its builder offset (`flatbuffers.Builder.vtables`).
    """

    data: Buffer
    min_align: int
    vectors: tuple[int, int, int]
    vtables: tuple[tuple[tuple[int, ...], int], ...]
    version: int
    header_length: int
    file_identifier: bytes
    constant_segment: SegmentOffsets | None
    mutable_segments: tuple[SegmentOffsets, ...] | None


def _builder_behind(tail: ProgramTail, tail_size: int, room: int) -> flatbuffers.Builder:
    builder = flatbuffers.Builder(0)
    size = aligned(room, 64) + tail_size
    builder.Bytes = bytearray(size)  # a builder never reads what it has written
    builder.head = size - tail_size
    builder.minalign = tail.min_align
    builder.vtables = dict(tail.vtables)
    return builder


def _pack_offsets(builder: flatbuffers.Builder, table: SegmentOffsets) -> int:
    builder.StartVector(8, len(table.offsets), 8)
    for offset in reversed(table.offsets):
        builder.PrependUint64(offset)
    vector = builder.EndVector()
    builder.StartObject(2)
    builder.PrependUint32Slot(0, table.segment, 0)
    builder.PrependUOffsetTRelativeSlot(1, vector, 0)
    return int(builder.EndObject())


def _pack_tables(builder: flatbuffers.Builder, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())


def _pack_segment(builder: flatbuffers.Builder, offset: int, size: int) -> int:
    builder.StartObject(2)
    builder.PrependUint64Slot(0, offset, 0)
    builder.PrependUint64Slot(1, size, 0)
    return int(builder.EndObject())


def _pack_named(builder: flatbuffers.Builder, key: str, segment: int) -> int:
    name = builder.CreateString(key)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, name, 0)
    builder.PrependUint32Slot(1, segment, 0)
    return int(builder.EndObject())


@lru_cache(maxsize=64)
def _front(
    tail: ProgramTail,
    tail_size: int,
    offsets: tuple[int, ...],
    sizes: tuple[int, ...],
    named: tuple[tuple[str, int], ...],
) -> bytes:
    """Return the flatbuffer before the tail. It does not depend on the tail's data, which is left out of `tail`."""
    # The order of ExecuTorch's generated `ProgramT.Pack`.
    builder = _builder_behind(tail, tail_size, 1024 + 48 * len(offsets) + 128 * len(named))
    segments = _pack_tables(builder, [_pack_segment(builder, *span) for span in zip(offsets, sizes, strict=True)])
    constant = None if tail.constant_segment is None else _pack_offsets(builder, tail.constant_segment)
    mutable = None
    if tail.mutable_segments is not None:
        mutable = _pack_tables(builder, [_pack_offsets(builder, table) for table in tail.mutable_segments])
    names = _pack_tables(builder, [_pack_named(builder, key, segment) for key, segment in named]) if named else None
    builder.StartObject(8)
    builder.PrependUint32Slot(0, tail.version, 0)
    for slot, vector in enumerate(tail.vectors, start=1):
        builder.PrependUOffsetTRelativeSlot(slot, vector, 0)
    for slot, table in ((4, segments), (5, constant), (6, mutable), (7, names)):
        if table is not None:
            builder.PrependUOffsetTRelativeSlot(slot, table, 0)
    builder.Finish(builder.EndObject(), file_identifier=tail.file_identifier)
    return bytes(builder.Output()[:-tail_size])


def assemble(tail: ProgramTail, segments: Sequence[Buffer], named: Sequence[tuple[str, int]]) -> list[Buffer]:
    """Return a program file as buffers to be written one after another.

    `segments` are all segments in order, `named` the pairs of key and segment index that go into the program's named
    data. Every reference of the tail to a segment must already be right.
    """
    sizes = [len(segment) for segment in segments]
    bare = attrs.evolve(tail, data=b"")
    front = _front(bare, len(tail.data), tuple(segment_offsets(sizes)), tuple(sizes), tuple(named))
    program = container_front(front + tail.data, sizes, header_length=tail.header_length)
    return container_parts(program, segments)
