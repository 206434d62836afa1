"""Join a program and its adapter's data into one program that carries the data itself.

ExecuTorch's Python interface takes one data file for a program, and that is the foundation; so the adapter's data has
to come with the program. The program's flatbuffer is not taken apart: it stays as it is, and a new root table is
written in front of it, which refers to the old execution plans and lists the further segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lora_core.pte import Buffer, aligned
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.named_blobs import mapped
from lora_core_xnnpack.files.program_front import ProgramTail, assemble
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


def join_program(program: Path, data: Sequence[Path]) -> list[Buffer]:
    """Return the file of `program` with the blobs of the data files inside, as buffers to be written one after another.

    Raises `BundleError` naming a file that is not whole.
    """
    old = mapped(program)
    try:
        root = ProgramRoot.read(old)
        tail = _tail(root)
    except NOT_WHOLE as error:
        raise damaged(program, error) from error
    segments: list[Buffer] = list(root.segments())
    named = list(root.named)
    for path in data:
        content = memoryview(mapped(path))
        for blob in stored_blobs(content, path):
            named.append((blob.key, len(segments)))
            segments.append(content[blob.offset : blob.offset + blob.size])
    return assemble(tail, segments, named)


def _tail(root: ProgramRoot) -> ProgramTail:
    size = root.header.program_size
    # Padded behind, so that what was aligned from the front is aligned from the back, as flatbuffers are written.
    flatbuffer = bytes(root.data[:size]).ljust(aligned(size, _ALIGNMENT), b"\0")
    plans, constants, delegates = (
        len(flatbuffer) - target(root.data, root.position, index) for index in (PLANS, CONSTANTS, DELEGATE_DATA)
    )
    return ProgramTail(
        data=flatbuffer,
        min_align=_ALIGNMENT,
        vectors=(plans, constants, delegates),
        vtables=(),
        version=root.version,
        header_length=_ALIGNMENT,
        file_identifier=root.file_identifier,
        constant_segment=root.constant_segment,
        mutable_segments=root.mutable_segments,
    )
