"""Lower the base and a template method for each slot plan into one program, and find the placeholders in it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.slots.placeholders import placeholder_pairs
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import LoraCoreError
from lora_core.models.base import BaseModel
from lora_core_xnnpack.files.data_file import SEGMENT_ALIGNMENT
from lora_core_xnnpack.files.program import PackedMethod, ProgramParts
from lora_core_xnnpack.lowering.lowering import FOUNDATION_TAG, LORA_TAG, Lowered, lower
from lora_core_xnnpack.multimethod.relocations import MethodRelocations, Relocations
from lora_core_xnnpack.multimethod.residents import BASE_METHOD, tensor_blob
from lora_core_xnnpack.slot_tensors import KeySite, TensorRelocation, occurrences
from lora_core_xnnpack.split.rewriting import Matrix

if TYPE_CHECKING:
    import torch

Placeholders = Mapping[str, tuple[Matrix, Matrix]]


@attrs.frozen(kw_only=True)
class LoweredTogether:
    """The template's program file, its relocation table, the foundation file's bytes, and planned bytes by method."""

    program: bytes
    table: Relocations
    foundation: bytes
    planned_memory: Mapping[str, int]


def lower_together(base: BaseModel, plans: Sequence[SlotPlan]) -> LoweredTogether:
    """Lower the base as method `forward` and, for each of `plans`, the base with placeholders in its slots."""
    from lora_core.models.lora import inject

    placeholders = {f"template_{index}": _placeholders(plan, index) for index, plan in enumerate(plans)}
    modules = {
        name: inject(_with_same_tensors(base.module), plan, base.summary.layers, placeholders[name])
        for name, plan in zip(placeholders, plans, strict=True)
    }
    lowered = lower({BASE_METHOD: base.module, **modules}, base)
    program = lowered.pte
    foundation = bytes(lowered.manager._tensor_data[FOUNDATION_TAG])
    return LoweredTogether(
        program=program,
        table=_table(lowered, ProgramParts.parse(program), placeholders),
        foundation=foundation,
        planned_memory={
            plan.name: sum(plan.non_const_buffer_sizes)
            for plan in lowered.manager.executorch_program.execution_plan
            if plan.delegates or plan.operators
        },
    )


def _placeholders(plan: SlotPlan, index: int) -> dict[str, tuple[Matrix, Matrix]]:
    # Those of two plans must differ: equal tensors would be stored once, and the second plan's order would be lost.
    factor = np.float32(1 + index)
    return {module: (a * factor, b * factor) for module, (a, b) in placeholder_pairs(plan).items()}


def _with_same_tensors(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of `module` whose parameters and buffers are the very tensors of `module`."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, tensors)


def _table(lowered: Lowered, program: ProgramParts, placeholders: Mapping[str, Placeholders]) -> Relocations:
    store = lowered.manager._named_data
    entries = store.external_data.get(LORA_TAG, {}) if store else {}
    if any(SEGMENT_ALIGNMENT % entry.alignment for entry in entries.values()):
        raise LoraCoreError("ExecuTorch asks for LoRA data at another alignment than that of its segments.")
    order = {key: position for position, key in enumerate(entries)}
    plans = [
        MethodRelocations(method=name, tensors=_tensors(program.methods[name], values, order))
        for name, values in placeholders.items()
    ]
    sizes = {4 * tensor.shape[0] * tensor.shape[1] for plan in plans for tensor in plan.tensors}
    stored = store.external_data.get(FOUNDATION_TAG, {}) if store else {}
    known = sorted(key for key, entry in stored.items() if len(store.buffers[entry.buffer_index]) in sizes)
    return Relocations(plans=tuple(plans), foundation_keys=tuple(known))


def _tensors(method: PackedMethod, values: Placeholders, order: Mapping[str, int]) -> tuple[TensorRelocation, ...]:
    found: list[tuple[int, TensorRelocation]] = []
    missing = []
    for module, pair in values.items():
        for matrix, value in zip(("a", "b"), pair, strict=True):
            key = tensor_blob(value).key
            sites = tuple(_sites(method, key))
            if key not in order or not sites:
                missing.append(f"{module} {matrix}")
                continue
            rows, columns = value.shape
            relocation = TensorRelocation(
                module=module, matrix="a" if matrix == "a" else "b", shape=(rows, columns), sites=sites
            )
            found.append((order[key], relocation))
    if missing:
        raise LoraCoreError(f"ExecuTorch did not store these LoRA matrices as XNNPACK constants: {', '.join(missing)}.")
    return tuple(relocation for _, relocation in sorted(found, key=lambda each: each[0]))


def _sites(method: PackedMethod, key: str) -> list[KeySite]:
    return [
        KeySite(payload=index, offset=offset)
        for index, payload in enumerate(method.payloads)
        for offset in occurrences(bytes(payload), key.encode("ascii"))
    ]
