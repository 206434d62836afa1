"""Join a program and its adapter's data into one program that carries the data itself.

ExecuTorch's Python interface takes one data file for a program, and that is the foundation; so the adapter's data has
to come with the program. The program's flatbuffer is not taken apart: it stays as it is, and a new root table is
written in front of it, which refers to the old execution plans and lists the further segments.

Nobody stores what is joined, and an adapter's load waits for it. So its front is packed here, in any order that is a
flatbuffer (https://flatbuffers.dev/internals), in a tenth of the time that a builder takes for some hundred tables.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate, count
from pathlib import Path

from lora_core.pte import Buffer, aligned, container_front, container_parts, segment_offsets
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.named_blobs import mapped
from lora_core_xnnpack.files.program_root import (
    CONSTANTS,
    DELEGATE_DATA,
    NOT_WHOLE,
    PLANS,
    ProgramRoot,
    damaged,
    target,
)

_ALIGNMENT = 64  # more than any alignment inside a program's flatbuffer (program.fbs: 16)
_PAIR = struct.Struct("<iII")  # NamedData, SubsegmentOffsets: two fields of four bytes
_ROW = struct.Struct("<i4xQQ")  # DataSegment: two fields of eight
# What never moves: the root's offset and the identifier (8 bytes), three vtables, and the root with eight fields.
_PAIR_VTABLE, _ROW_VTABLE, _ROOT_VTABLE, _ROOT, _VECTORS = 8, 16, 24, 44, 80


def join_program(program: Path, data: Sequence[Path]) -> list[Buffer]:
    """Return the file of `program` with the blobs of the data files inside, as buffers to be written one after another.

    Raises `BundleError` naming a file that is not whole.
    """
    old = mapped(program)
    try:
        root = ProgramRoot.read(old)
        segments: list[Buffer] = list(root.segments())
        named = list(root.named)
        for path in data:
            content = memoryview(mapped(path))
            for blob in stored_blobs(content, path):
                named.append((blob.key, len(segments)))
                segments.append(content[blob.offset : blob.offset + blob.size])
        return with_segments(root, segments, named)
    except NOT_WHOLE as error:
        raise damaged(program, error) from error


def with_segments(root: ProgramRoot, segments: Sequence[Buffer], named: Sequence[tuple[str, int]]) -> list[Buffer]:
    """Return the file of a program with these segments in place of its own, those that its plans use where they were.

    `named` are the keys of all named data, each with the number of its segment. Raises one of `NOT_WHOLE`.
    """
    sizes = [len(segment) for segment in segments]
    front = container_front(_flatbuffer(root, sizes, named), sizes, header_length=_ALIGNMENT)
    return container_parts(front, segments)


def _flatbuffer(root: ProgramRoot, sizes: Sequence[int], named: Sequence[tuple[str, int]]) -> bytes:
    """Return a root that lists segments of `sizes` and `named` data, what it refers to, and the old flatbuffer."""
    mutable = root.mutable_segments or ()
    tables = (*mutable, *(() if root.constant_segment is None else (root.constant_segment,)))
    keys = [key.encode() for key, _ in named]
    # Positions first: a reference is the distance to what lies behind it.
    rows_at, names_at, mutable_at, end = _laid(_VECTORS, [4 + 4 * len(each) for each in (sizes, named, mutable)])
    *rows, end = _laid(aligned(end, 8), [_ROW.size] * len(sizes))
    *pairs, end = _laid(end, [_PAIR.size] * (len(named) + len(tables)))
    # The numbers of a vector are aligned, and not their count before them; four bytes behind each are for the next.
    *lists, end = _laid(aligned(end, 8) + 4, [8 + 8 * len(table.offsets) for table in tables])
    *strings, end = _laid(end, [aligned(len(key) + 5, 4) for key in keys])
    start = aligned(end, _ALIGNMENT)
    plans, constants, delegates = (
        start + target(root.data, root.position, index) for index in (PLANS, CONSTANTS, DELEGATE_DATA)
    )
    constant_at = 0 if root.constant_segment is None else pairs[-1]
    vectors = (
        rows_at,
        constant_at,
        0 if root.mutable_segments is None else mutable_at,
        names_at if named else 0,
    )
    front = bytearray(start)
    _put_root(front, root, (plans, constants, delegates, *vectors))
    _put_tables(front, rows_at, rows)
    _put_tables(front, names_at, pairs[: len(named)])
    _put_tables(front, mutable_at, pairs[len(named) : len(named) + len(mutable)])
    for at, offset, size in zip(rows, segment_offsets(sizes), sizes, strict=True):
        _ROW.pack_into(front, at, at - _ROW_VTABLE, offset, size)
    for at, string, key, (_, segment) in zip(pairs, strings, keys, named, strict=False):
        _PAIR.pack_into(front, at, at - _PAIR_VTABLE, string - at - 4, segment)
        struct.pack_into(f"<I{len(key)}s", front, string, len(key), key)
    for at, numbers, table in zip(pairs[len(named) :], lists, tables, strict=True):
        _PAIR.pack_into(front, at, at - _PAIR_VTABLE, table.segment, numbers - at - 8)
        struct.pack_into(f"<I{len(table.offsets)}Q", front, numbers, len(table.offsets), *table.offsets)
    return bytes(front) + bytes(root.data[: root.header.program_size])


def _laid(start: int, sizes: Sequence[int]) -> list[int]:
    """Return where things of `sizes` lie one after another from `start` on, and where the last ends."""
    return list(accumulate(sizes, initial=start))


def _put_root(front: bytearray, root: ProgramRoot, referred: Sequence[int]) -> None:
    """Write the vtables and the root: the version, then references to `referred`, 0 for none."""
    struct.pack_into("<I4s", front, 0, _ROOT, root.file_identifier)
    struct.pack_into("<4H", front, _PAIR_VTABLE, 8, _PAIR.size, 4, 8)
    struct.pack_into("<4H", front, _ROW_VTABLE, 8, _ROW.size, 8, 16)
    fields = [4 + 4 * index for index in range(1 + len(referred))]
    there = [at if index == 0 or referred[index - 1] else 0 for index, at in enumerate(fields)]
    struct.pack_into(f"<{2 + len(fields)}H", front, _ROOT_VTABLE, 4 + 2 * len(fields), 4 + 4 * len(fields), *there)
    struct.pack_into("<iI", front, _ROOT, _ROOT - _ROOT_VTABLE, root.version)
    for at, position in zip(fields[1:], referred, strict=True):
        if position:
            struct.pack_into("<I", front, _ROOT + at, position - _ROOT - at)


def _put_tables(front: bytearray, at: int, tables: Sequence[int]) -> None:
    """Write a vector of references to `tables`."""
    first = at + 4
    distances = (table - place for table, place in zip(tables, count(first, 4), strict=False))
    struct.pack_into(f"<{1 + len(tables)}I", front, at, len(tables), *distances)
