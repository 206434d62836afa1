"""Smaller functions: every method carries a copy of its function, so its names and small constants are paid once each.

Equal small constants become one, and values that nobody outside the function can name get short names. Constants in the
blob file, inputs and outputs keep theirs; what the function computes does not change.
"""

from __future__ import annotations

from typing import Any

from lora_core_coreml.storage import mil

_STORED = "blobFileValue"


def compact(function: Any) -> None:
    """Make `function` (its MIL protobuf) smaller, in place. A function with nested blocks is left as it is."""
    if any(operation.blocks for operation in mil.operations(function)):
        return
    block = function.block_specializations[function.opset]
    operations, merged = _without_repetition(block)
    names = _short_names(function, block, operations)
    names |= {repeated: names.get(first, first) for repeated, first in merged.items()}
    for operation in operations:
        _rename(operation, names)
    del block.operations[:]
    block.operations.extend(operations)


def _without_repetition(block: Any) -> tuple[list[Any], dict[str, str]]:
    """Return the operations without repeated small constants, and which constant stands for each that is left out."""
    first_of: dict[bytes, str] = {}
    merged: dict[str, str] = {}
    operations = []
    for operation in block.operations:
        if _is_small_constant(operation) and operation.outputs[0].name not in block.outputs:
            name = operation.outputs[0].name
            first = first_of.setdefault(mil.serialize(operation.attributes["val"]), name)
            if first != name:
                merged[name] = first
                continue
        operations.append(operation)
    return operations, merged


def _short_names(function: Any, block: Any, operations: list[Any]) -> dict[str, str]:
    """Return a short name for every value but inputs, outputs and constants in the blob file."""
    fixed = {value.name for value in function.inputs} | set(block.outputs)
    produced = []
    for operation in operations:
        stored = any(value.WhichOneof("value") == _STORED for value in operation.attributes.values())
        for output in operation.outputs:
            if stored:
                fixed.add(output.name)
            produced.append(output.name)
    free = [name for name in produced if name not in fixed]
    return {name: _unused(number, fixed) for number, name in enumerate(free)}


def _unused(number: int, fixed: set[str]) -> str:
    name = f"v{number}"
    while name in fixed:
        name += "_"
    return name


def _is_small_constant(operation: Any) -> bool:
    return bool(operation.type == "const" and operation.attributes["val"].WhichOneof("value") != _STORED)


def _rename(operation: Any, names: dict[str, str]) -> None:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                binding.name = names.get(binding.name, binding.name)
    for output in operation.outputs:
        output.name = names.get(output.name, output.name)
    if operation.outputs and "name" in operation.attributes:
        operation.attributes["name"].immediateValue.tensor.strings.values[0] = operation.outputs[0].name
