"""Constants that repeat one row, written as that row: stand-ins take no more room in a package than in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy.typing as npt


@contextmanager
def one_row_each() -> Iterator[None]:
    """Let coremltools 9.0 write one row of each constant that repeats it, during the block.

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
        if constant.dtype in (types.fp16, types.fp32, types.int8) and _repeats_rows(value):
            constant = SimpleNamespace(val=value[:1], dtype=constant.dtype)
        return write_whole(constant, writer)

    helper._get_offset_by_writing_data = write
    try:
        yield
    finally:
        helper._get_offset_by_writing_data = write_whole


def _repeats_rows(value: npt.NDArray[Any]) -> bool:
    """Say whether all rows are one, which is not one value all over; strides do not tell, since tools copy views."""
    if value.ndim < 2 or len(value) < 2 or (value[0] == value[0].flat[0]).all():
        return False
    return bool((value[1] == value[0]).all()) and bool((value == value[0]).all())
