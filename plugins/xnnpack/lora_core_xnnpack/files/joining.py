"""Join a program and its adapter's data into one program that carries the data itself.

ExecuTorch's Python interface takes one data file for a program, and that is the foundation; so the adapter's data has
to come with the program. The program's flatbuffer is not taken apart: it stays as it is, and a new root table is
written in front of it, which refers to the old execution plans and lists the further segments.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from lora_core.errors import BundleError
from lora_core_xnnpack.files.data_file import aligned, stored_blobs
from lora_core_xnnpack.files.named_blobs import Buffer, field, mapped, number, tables, text
from lora_core_xnnpack.files.program_front import ProgramTail, SegmentOffsets, assemble

_HEADER = struct.Struct("<4sIQQQ")  # as in program_layout: magic, length, program size, segment base, segment data size
_ALIGNMENT = 64  # more than any alignment inside a program's flatbuffer (program.fbs: 16)
_PLANS, _CONSTANTS, _DELEGATE_DATA, _SEGMENTS, _CONSTANT_SEGMENT, _MUTABLE_SEGMENTS, _NAMED = 1, 2, 3, 4, 5, 6, 7


def join_program(program: Path, data: Sequence[Path]) -> list[Buffer]:
    """Return the file of `program` with the blobs of the data files inside, as buffers to be written one after another.

    Raises `BundleError` naming a file that is not whole.
    """
    old = mapped(program)
    try:
        tail, segments, named = _take_apart(old)
    except (struct.error, ValueError, IndexError) as error:
        raise BundleError(f"{program.name} is not a whole ExecuTorch program: {error}", where=str(program)) from error
    for path in data:
        content = memoryview(mapped(path))
        for blob in stored_blobs(content, path):
            named.append((blob.key, len(segments)))
            segments.append(content[blob.offset : blob.offset + blob.size])
    return assemble(tail, segments, named)


def _take_apart(old: Buffer) -> tuple[ProgramTail, list[Buffer], list[tuple[str, int]]]:
    magic, _, size, base, _ = _HEADER.unpack_from(old, 8)
    if bytes(old[4:6]) != b"ET" or magic != b"eh00":
        raise ValueError("it has no ExecuTorch header")
    root = struct.unpack_from("<I", old)[0]
    # Padded behind, so that what was aligned from the front is aligned from the back, as flatbuffers are written.
    flatbuffer = bytes(old[:size]).ljust(aligned(size, _ALIGNMENT), b"\0")
    view = memoryview(old)
    segments: list[Buffer] = []
    for table in tables(old, root, _SEGMENTS):
        start = base + number(old, table, 0, "<Q")
        segments.append(view[start : start + number(old, table, 1, "<Q")])
    plans, constants, delegates = (
        len(flatbuffer) - _target(old, root, index) for index in (_PLANS, _CONSTANTS, _DELEGATE_DATA)
    )
    tail = ProgramTail(
        data=flatbuffer,
        min_align=_ALIGNMENT,
        vectors=(plans, constants, delegates),
        vtables=(),
        version=number(old, root, 0, "<I"),
        header_length=_ALIGNMENT,
        file_identifier=bytes(old[4:8]),
        constant_segment=_constant_segment(old, root),
        mutable_segments=_mutable_segments(old, root),
    )
    named = [(text(old, table, 0), number(old, table, 1, "<I")) for table in tables(old, root, _NAMED)]
    return tail, segments, named


def _target(data: Buffer, table: int, index: int) -> int:
    at = field(data, table, index)
    if not at:
        raise ValueError(f"its root has no field {index}")
    return at + int(struct.unpack_from("<I", data, at)[0])


def _constant_segment(data: Buffer, root: int) -> SegmentOffsets | None:
    return _offsets(data, _target(data, root, _CONSTANT_SEGMENT)) if field(data, root, _CONSTANT_SEGMENT) else None


def _mutable_segments(data: Buffer, root: int) -> tuple[SegmentOffsets, ...] | None:
    if not field(data, root, _MUTABLE_SEGMENTS):
        return None
    return tuple(_offsets(data, table) for table in tables(data, root, _MUTABLE_SEGMENTS))


def _offsets(data: Buffer, table: int) -> SegmentOffsets:
    offsets: tuple[int, ...] = ()
    if field(data, table, 1):
        vector = _target(data, table, 1)
        offsets = struct.unpack_from(f"<{struct.unpack_from('<I', data, vector)[0]}Q", data, vector + 4)
    return SegmentOffsets(segment=number(data, table, 0, "<I"), offsets=offsets)
