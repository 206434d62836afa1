"""What an ExecuTorch file holds beside its named blobs: a front, programs, what delegates compile to."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from lora_core.pte import Buffer
from lora_core_xnnpack.files.data_file import DataBlob, front, stored_blobs
from lora_core_xnnpack.files.marks import (
    ADAPTER_MARK,
    FOUNDATION_MARK,
    INPUTS_OF,
    MARK_LENGTH,
    PROGRAM_ADAPTERS,
    PROGRAM_MARK,
)
from lora_core_xnnpack.files.named_blobs import NamedBlob, field, number, tables
from lora_core_xnnpack.files.program_root import NOT_WHOLE, PLANS, ProgramRoot, damaged

Piece: TypeAlias = tuple[int, int, str]
"""Offset from the file's start, size, and a word for it."""

_CONTENT_KEY = re.compile("[0-9a-f]{64}")
_DELEGATES, _PROCESSED = 7, 1  # of ExecutionPlan and BackendDelegate (program.fbs)
_LOCATION, _INDEX, _SEGMENT = 0, 1, 1  # of BackendDelegateDataReference, and its location in a segment


def data_parts(data: Buffer, path: Path) -> list[Piece]:
    """Return the front of a data file: as long as its blobs need, whatever the file says of it."""
    blobs = stored_blobs(data, path)
    marks = [_mark(blob.offset, blob.size) for blob in blobs if blob.key in (FOUNDATION_MARK, ADAPTER_MARK)]
    return [(0, min(len(_front(blobs)), *(blob.offset for blob in blobs), len(data)), "header"), *marks]


def _mark(offset: int, size: int) -> Piece:
    """Return the part that a mark is: what lies behind it under the same name is none."""
    return offset, min(size, MARK_LENGTH), "mark"


def _front(blobs: Sequence[NamedBlob]) -> bytes:
    spans = sorted({(blob.offset, blob.size) for blob in blobs})
    index = {span: position for position, span in enumerate(spans)}
    named = [DataBlob(key=blob.key, data=b"", digest=_stand_in(blob.key), layout=blob.layout) for blob in blobs]
    placed = {_stand_in(blob.key): index[blob.offset, blob.size] for blob in blobs}
    return front(named, placed, [size for _, size in spans])


def _stand_in(key: str) -> str:
    """Return what stands for a blob's hash where it only tells segments apart: a content key itself, which is quick."""
    return key if _CONTENT_KEY.fullmatch(key) else f"of {key}"


def program_parts(data: Buffer, path: Path) -> list[Piece]:
    """Return a program's flatbuffer and those segments that its plans refer to; raises `BundleError`.

    A segment that no plan refers to, and no name, is none of the program's. The names of its adapters are a part as
    they stand: `require_adapters` compares every byte.
    """
    try:
        root = ProgramRoot.read(data)
        parts = [(0, root.header.program_size, "program")]
        parts += [(*root.spans[index], "delegate") for index in sorted(set(_delegated(root)))]
        tables_of_constants = [root.constant_segment, *(root.mutable_segments or ())]
        used = {each.segment for each in tables_of_constants if each is not None and each.offsets}
        parts += [_mark(*root.spans[index]) for key, index in root.named if key == PROGRAM_MARK]
        parts += [(*root.spans[index], "names") for key, index in root.named if key == PROGRAM_ADAPTERS]
        parts += [(*root.spans[index], "inputs") for key, index in root.named if key.startswith(INPUTS_OF)]
        return parts + [(*root.spans[index], "constants") for index in sorted(used)]
    except NOT_WHOLE as error:
        raise damaged(path, error) from error


def _delegated(root: ProgramRoot) -> Iterator[int]:
    for plan in tables(root.data, root.position, PLANS):
        for delegate in tables(root.data, plan, _DELEGATES):
            at = field(root.data, delegate, _PROCESSED)
            processed = at + int(struct.unpack_from("<I", root.data, at)[0])
            if number(root.data, processed, _LOCATION, "<B") == _SEGMENT:
                yield number(root.data, processed, _INDEX, "<I")
