"""Constants that repeat one row, written as that row: stand-ins take no more room in a package than in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from lora_core_coreml.weightless.forms import repeats_rows


@contextmanager
def one_row_each() -> Iterator[None]:
    """Let coremltools 9.0 write one row of each constant that is a view of it, during the block.

    The blob is shorter than the constant's type says, so such a package is for telling constants apart only.
    """
    from lora_core_coreml.quiet import coremltools

    coremltools()
    from coremltools.converters.mil.backend.mil import helper
    from coremltools.converters.mil.mil import types

    write_whole = helper._get_offset_by_writing_data

    def write(constant: Any, writer: Any) -> Any:
        value = constant.val
        # Types of less than a byte are arrays of int8 too, and packed while they are written.
        if constant.dtype in (types.fp16, types.fp32, types.int8) and repeats_rows(value, value.strides):
            constant = SimpleNamespace(val=value[:1], dtype=constant.dtype)
        return write_whole(constant, writer)

    helper._get_offset_by_writing_data = write
    try:
        yield
    finally:
        helper._get_offset_by_writing_data = write_whole
