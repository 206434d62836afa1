# ruff: noqa: TID253  this module is imported only while exporting, with ExecuTorch already loaded
"""Values of a method as elements."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import attrs
from executorch.exir.schema import AllocationDetails, EValue, IntList, OptionalTensorList, Tensor, TensorList

from lora_core_xnnpack.stamping import planning
from lora_core_xnnpack.stamping.elements import Element, join_numbers, split_numbers

Uses = tuple[tuple[str, int], ...]
"""Calls that a value is used in: operator or backend, and the position of the value among what it takes."""
_LISTS = (IntList, TensorList, OptionalTensorList)  # lists of values, by their numbers


@attrs.frozen(kw_only=True)
class _Kind:
    """A value without its numbers, as text to compare and as an object to copy."""

    text: str
    value: Any = attrs.field(eq=False)


def is_planned(value: EValue) -> bool:
    """Say whether the value is a tensor in memory that is planned."""
    tensor: Any = value.val
    return (
        isinstance(tensor, Tensor)
        and tensor.allocation_info is not None
        and tensor.allocation_info.memory_id == planning.ARENA
    )


def element(value: EValue, place: int | None, uses: Uses) -> Element:
    """Return a value as an element; `place` is the number of the planned piece of memory that it is in."""
    bare: Any = copy.copy(value.val)
    numbers: tuple[int, ...] = ()
    if isinstance(bare, _LISTS):
        numbers, bare.items = tuple(bare.items), [0] * len(bare.items)
    elif isinstance(bare, Tensor):
        numbers = (bare.data_buffer_idx,)
        bare.data_buffer_idx = 0
        if bare.allocation_info is not None:
            where = bare.allocation_info
            offset = where.memory_offset_low + (where.memory_offset_high << 32)
            numbers += (offset if place is None else place,)
            bare.allocation_info = AllocationDetails(where.memory_id, 0, 0)
        if bare.extra_tensor_info is not None and bare.extra_tensor_info.fully_qualified_name is not None:
            bare.extra_tensor_info = copy.copy(bare.extra_tensor_info)
            name, found = split_numbers(bare.extra_tensor_info.fully_qualified_name)
            bare.extra_tensor_info.fully_qualified_name = name
            numbers += found
    return Element(kind=_Kind(text=repr(bare), value=bare), numbers=numbers, hints=uses)


def value(element: Element, offsets: Sequence[int]) -> EValue:
    """Return the value that `element` was given; `offsets` are those of the planned pieces of memory."""
    assert isinstance(element.kind, _Kind)
    made, numbers = copy.copy(element.kind.value), element.numbers
    if isinstance(made, _LISTS):
        made.items = list(numbers)
    elif isinstance(made, Tensor):
        made.data_buffer_idx, numbers = numbers[0], numbers[1:]
        if made.allocation_info is not None:
            memory = made.allocation_info.memory_id
            offset = offsets[numbers[0]] if memory == planning.ARENA else numbers[0]
            made.allocation_info = AllocationDetails(memory, offset & 0xFFFFFFFF, offset >> 32)
            numbers = numbers[1:]
        if made.extra_tensor_info is not None and made.extra_tensor_info.fully_qualified_name is not None:
            made.extra_tensor_info = copy.copy(made.extra_tensor_info)
            made.extra_tensor_info.fully_qualified_name = join_numbers(
                made.extra_tensor_info.fully_qualified_name, numbers
            )
    return EValue(val=made)
