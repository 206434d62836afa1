"""Adapters as inputs: one method for all adapters of a plan, in place of a template that is copied for each.

ExecuTorch's static attention takes LoRA in the same way (`lora_call` and `__lora_io_blob__` in its 1.5.1: A and B as
forward arguments, tensors of one file for each adapter).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_core.adapters.slots.input_names import input_key, input_method
from lora_core_coreml.program.function_inputs import FLOAT16, FLOAT32, SlotInput, taking_inputs
from lora_core_coreml.program.metadata import constant_strings_plan
from lora_core_coreml.program.naming import FOUNDATION, KEYS
from lora_core_coreml.program.object import MethodObject, PartitionFoundation, ProgramObject, SlotPart
from lora_core_coreml.storage.pte import Program

_SCALAR_TYPES = {FLOAT16: "HALF", FLOAT32: "FLOAT"}
"""Types of MIL.proto as `ScalarType` of ExecuTorch's scalar_type.fbs."""


def with_adapters_as_inputs(program: ProgramObject, fingerprint: str) -> ProgramObject:
    """Return `program` with methods that take adapters as inputs in place of its templates, and nothing left to link.

    For each there is a constant method (`naming.KEYS`) that names what it takes behind the base's inputs, in order;
    another (`naming.FOUNDATION`) holds the `fingerprint` of the foundation. Raises `UnsupportedError` for a slot that
    is no matrix of a linear layer.
    """
    called, constants = [], [*program.constants, constant_strings_plan(FOUNDATION, [fingerprint])]
    for number, template in enumerate(program.templates):
        for method in template:
            name = input_method(number, method.kind)
            changed, keys = _with_inputs(method, program.foundations)
            called.append((name, changed))
            constants.append(constant_strings_plan(f"{name}{KEYS}", keys))
    return attrs.evolve(program, templates=(), called=tuple(called), constants=tuple(constants))


def _with_inputs(
    method: MethodObject, foundations: Sequence[PartitionFoundation]
) -> tuple[MethodObject, Sequence[str]]:
    functions, taken = [], []
    for function, foundation in zip(method.functions, foundations, strict=True):
        changed, inputs = taking_inputs(function, foundation)
        functions.append(changed)
        taken.append(inputs)
    before = [len(function.description.input) for function in method.functions]
    keys = list(dict.fromkeys(input_key(each.part.module, each.part.part) for inputs in taken for each in inputs))
    plan = _plan(method.plan, taken, before)
    return attrs.evolve(method, plan=plan, functions=tuple(functions)), keys


def _plan(plan: Program, taken: Sequence[Sequence[SlotInput]], before: Sequence[int]) -> Program:
    """Return an execution plan that takes the inputs of all partitions and hands each its own, `taken`, behind the
    `before` that it took.
    """
    values, inputs = list(plan["values"]), list(plan["inputs"])
    like: Mapping[str, Any] = next(values[index] for index in inputs if values[index]["val_type"] == "Tensor")
    places: dict[SlotPart, int] = {}
    for each in (each for some in taken for each in some):
        if each.part not in places:
            places[each.part] = len(values)
            inputs.append(len(values))
            shape = {"sizes": each.shape, "dim_order": list(range(len(each.shape)))}
            scalar = _SCALAR_TYPES[each.type.tensorType.dataType]
            values.append({**like, "val": {**like["val"], "scalar_type": scalar, **shape}})

    def handed(instruction: Mapping[str, Any]) -> Mapping[str, Any]:
        if instruction["instr_args_type"] != "DelegateCall":
            return instruction
        call = instruction["instr_args"]
        partition = plan["delegates"][call["delegate_index"]]["partition"]
        count, more = before[partition], [places[each.part] for each in taken[partition]]
        return {**instruction, "instr_args": {**call, "args": [*call["args"][:count], *more, *call["args"][count:]]}}

    chains = [{**chain, "instructions": [handed(each) for each in chain["instructions"]]} for chain in plan["chains"]]
    return {**plan, "values": values, "inputs": inputs, "chains": chains}
