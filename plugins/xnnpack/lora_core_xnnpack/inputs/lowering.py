"""Lower the base and, for each slot plan, a method that takes an adapter's A and B as inputs, into one program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from lora_core.adapters.slots.input_names import input_method
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import FP32
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.inputs.linking import FORWARD
from lora_core_xnnpack.lowering.lowering import FOUNDATION_TAG, lower
from lora_core_xnnpack.lowering.slots import placeholders
from lora_core_xnnpack.multimethod.lowering import LoweredTogether, Placeholders, methods_of
from lora_core_xnnpack.multimethod.relocations import MethodRelocations, Relocations
from lora_core_xnnpack.slot_tensors import TensorRelocation

SlotOrder = Iterable[tuple[str, str]]
"""Paths of slots' layers and parts, in the order in which a method takes them."""


def lower_with_inputs(base: BaseModel, plans: Sequence[SlotPlan], out: Path) -> LoweredTogether:
    """Lower the base as method `forward`, and for each of `plans` one that takes what is in its slots.

    Writes the foundation file into `out`.
    """
    lowered = lower(methods_of(base, plans, values_of(plans), FP32), base, takes_slots=True)
    with (out / FOUNDATION_FILE).open("xb") as file:
        lowered.manager._tensor_data[FOUNDATION_TAG].write_to_file(file)
    order = {number: lowered.slot_inputs[input_method(number, FORWARD)] for number in range(len(plans))}
    return LoweredTogether(
        program=lowered.pte,
        table=taken(plans, base.paths, order),
        planned_memory={
            plan.name: sum(plan.non_const_buffer_sizes)
            for plan in lowered.manager.executorch_program.execution_plan
            if plan.delegates or plan.operators
        },
    )


def values_of(plans: Sequence[SlotPlan]) -> dict[str, Placeholders]:
    """Return values of no meaning in the slots of each plan, by the name of its method."""
    return {input_method(number, FORWARD): placeholders(plan, FP32) for number, plan in enumerate(plans)}


def taken(plans: Sequence[SlotPlan], paths: Mapping[str, str], order: Mapping[int, SlotOrder]) -> Relocations:
    """Return which parts of slots the methods take, in `order` by plan, as relocations: there is no place for a key of
    theirs. `paths` are those of modules.
    """
    modules = {path: module for module, path in paths.items()}
    return Relocations(
        plans=tuple(
            MethodRelocations(
                method=input_method(number, FORWARD),
                tensors=tuple(_taken(plan, modules[path], part) for path, part in order[number]),
            )
            for number, plan in enumerate(plans)
        ),
        foundation_keys=(),
    )


def _taken(plan: SlotPlan, module: str, part: str) -> TensorRelocation:
    (shape,) = (each.shape for slot in plan.slots if slot.module == module for each in slot.parts if each.name == part)
    return TensorRelocation(module=module, part=part, shape=shape, sites=())
