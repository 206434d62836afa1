"""Lower the base and a template method for each slot plan into one program, and find the placeholders in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import LoraCoreError
from lora_core.models.base import BaseModel
from lora_core.pte import SEGMENT_ALIGNMENT
from lora_core_xnnpack.adapter_dtype import FP32, StoredParts
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.lowering.lowering import FOUNDATION_TAG, LORA_TAG, Lowered, lower
from lora_core_xnnpack.lowering.slots import attach, placeholders, stored_placeholders
from lora_core_xnnpack.multimethod.relocations import MethodRelocations, Relocations
from lora_core_xnnpack.multimethod.residents import BASE_METHOD
from lora_core_xnnpack.slot_tensors import TensorRelocation, find_sites, not_stored, tensor_blob

if TYPE_CHECKING:
    import torch

Placeholders = Mapping[str, Values]
Stored = Mapping[str, StoredParts]


@attrs.frozen(kw_only=True)
class LoweredTogether:
    """The template's program file, its relocation table, and planned bytes by method."""

    program: bytes
    table: Relocations
    planned_memory: Mapping[str, int]


def lower_together(base: BaseModel, plans: Sequence[SlotPlan], out: Path, *, dtype: str = FP32) -> LoweredTogether:
    """Lower the base as method `forward` and, for each of `plans`, the base with placeholders in its slots, which are
    of type `dtype`.

    Writes the foundation file into `out`.
    """
    values = method_placeholders(plans, dtype)
    lowered = lower(methods_of(base, plans, values, dtype), base)
    stored = stored_by_method(plans, values, dtype)
    program = lowered.pte
    with (out / FOUNDATION_FILE).open("xb") as file:
        lowered.manager._tensor_data[FOUNDATION_TAG].write_to_file(file)
    return LoweredTogether(
        program=program,
        table=find_relocations(ProgramParts.parse(program), _slot_order(lowered), stored, _foundation_sizes(lowered)),
        planned_memory={
            plan.name: sum(plan.non_const_buffer_sizes)
            for plan in lowered.manager.executorch_program.execution_plan
            if plan.delegates or plan.operators
        },
    )


def method_placeholders(plans: Sequence[SlotPlan], dtype: str) -> dict[str, Placeholders]:
    """Return the values in the slots of each plan, by the name of its method."""
    return {f"template_{index}": placeholders(plan, dtype, index) for index, plan in enumerate(plans)}


def stored_by_method(plans: Sequence[SlotPlan], values: Mapping[str, Placeholders], dtype: str) -> dict[str, Stored]:
    """Return what `method_placeholders` gave as a program stores it."""
    return {
        name: stored_placeholders(plan, each, dtype) for plan, (name, each) in zip(plans, values.items(), strict=True)
    }


def methods_of(
    base: BaseModel, plans: Sequence[SlotPlan], values: Mapping[str, Placeholders], dtype: str
) -> dict[str, torch.nn.Module]:
    """Return what is lowered, by name of the method: the base, and for each plan the base with `values`."""
    modules = {
        name: attach(base, _with_same_tensors(base.module), plan, values[name], dtype)
        for name, plan in zip(values, plans, strict=True)
    }
    return {BASE_METHOD: base.module, **modules}


def _with_same_tensors(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of `module` whose parameters and buffers are the very tensors of `module`."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, tensors)


def _slot_order(lowered: Lowered) -> tuple[str, ...]:
    """Return the keys of the LoRA data in stored order."""
    store = lowered.manager._named_data
    entries = store.external_data.get(LORA_TAG, {}) if store else {}
    if any(SEGMENT_ALIGNMENT % entry.alignment for entry in entries.values()):
        raise LoraCoreError("ExecuTorch asks for LoRA data at another alignment than that of its segments.")
    return tuple(entries)


def _foundation_sizes(lowered: Lowered) -> dict[str, int]:
    """Return the bytes of each tensor of the foundation under a content key."""
    store = lowered.manager._named_data
    stored = store.external_data.get(FOUNDATION_TAG, {}) if store else {}
    return {key: len(store.buffers[entry.buffer_index]) for key, entry in stored.items()}


def find_relocations(
    program: ProgramParts,
    order: Sequence[str],
    placeholders: Mapping[str, Stored],
    foundation: Mapping[str, int],
) -> Relocations:
    """Find the `placeholders` of each template method in a program whose LoRA data is stored under the keys `order`.

    `foundation` has the sizes of the foundation's tensors by content key.
    """
    positions = {key: position for position, key in enumerate(order)}
    plans = [
        MethodRelocations(method=name, tensors=_tensors(program.methods[name], values, positions))
        for name, values in placeholders.items()
    ]
    sizes = {tensor.size for plan in plans for tensor in plan.tensors}
    known = sorted(key for key, size in foundation.items() if size in sizes)
    return Relocations(plans=tuple(plans), foundation_keys=tuple(known))


def _tensors(method: PackedMethod, values: Stored, order: Mapping[str, int]) -> tuple[TensorRelocation, ...]:
    found: list[tuple[int, TensorRelocation]] = []
    missing = []
    payloads = dict(enumerate(method.payloads))
    for module, parts in values.items():
        for part, array in parts.items():
            key = tensor_blob(array, part).key
            sites = find_sites(payloads, key)
            if key not in order or not sites:
                missing.append(f"{module} {part}")
                continue
            tensor = TensorRelocation(module=module, part=part, shape=array.shape, sites=sites, dtype=array.dtype.name)
            found.append((order[key], tensor))
    if missing:
        raise not_stored(missing)
    return tuple(relocation for _, relocation in sorted(found, key=lambda each: each[0]))
