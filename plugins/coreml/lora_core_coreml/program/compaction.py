"""Smaller functions: every method carries a copy of its function, so names and constants are paid once a method.

Constants with equal values become one, operations lose the `name` attribute (their outputs are named), and values that
nobody outside the function can name get short names. Inputs and outputs keep theirs; what the function computes does
not change. All of it is plain MIL.proto: a binding may name any value defined before, attributes are optional, and
names must be unique identifiers.
"""

from __future__ import annotations

import string
from itertools import count

from lora_core_coreml.storage import mil
from lora_core_coreml.storage.messages import MilBlock, MilFunction, MilOperation

_STORED = "blobFileValue"
# torch.export's prefixes of parameters, buffers, constants. Other weights (a bias that coremltools adds) are named by
# a counter of the process, so their names would tell what it had done before.
_MODELS_OWN = ("p_", "b_", "c_")
# An upper-case letter first: no word of MIL's text form, which CoreML compiles a program to, looks like that.
_FIRST = string.ascii_uppercase
_REST = string.ascii_letters + string.digits


def compact(function: MilFunction, *, keep_weight_names: bool) -> None:
    """Make `function` (its MIL protobuf) smaller, in place. A function with nested blocks is left as it is.

    Constants in the blob file count as equal if they refer to one offset, so offsets must be distinct for distinct
    blobs. `keep_weight_names` leaves the model's own weights their names, by which people know them.
    """
    if any(operation.blocks for operation in mil.operations(function)):
        return
    block = function.block_specializations[function.opset]
    operations, merged = _without_repetition(block)
    names = _short_names(function, block, operations, keep_weight_names)
    names |= {repeated: names.get(first, first) for repeated, first in merged.items()}
    for operation in operations:
        _rename(operation, names)
        operation.attributes.pop("name", None)
    del block.operations[:]
    block.operations.extend(operations)


def _without_repetition(block: MilBlock) -> tuple[list[MilOperation], dict[str, str]]:
    """Return the operations without repeated constants, and which constant stands for each that is left out."""
    first_of: dict[bytes, str] = {}
    merged: dict[str, str] = {}
    operations = []
    for operation in block.operations:
        if operation.type == "const" and operation.outputs[0].name not in block.outputs:
            name = operation.outputs[0].name
            first = first_of.setdefault(mil.serialize(operation.attributes["val"]), name)
            if first != name:
                merged[name] = first
                continue
        operations.append(operation)
    return operations, merged


def _short_names(
    function: MilFunction, block: MilBlock, operations: list[MilOperation], keep_weight_names: bool
) -> dict[str, str]:
    """Return a short name for every value that may have one."""
    fixed = {value.name for value in function.inputs} | set(block.outputs)
    produced = []
    for operation in operations:
        for output in operation.outputs:
            if keep_weight_names and keeps_its_name(operation, output.name):
                fixed.add(output.name)
            produced.append(output.name)
    free = (name for name in map(short_name, count()) if name not in fixed)
    return {name: next(free) for name in produced if name not in fixed}


def keeps_its_name(operation: MilOperation, name: str) -> bool:
    """Say whether `name`, a result of `operation`, is a weight that people know by it."""
    stored = any(value.WhichOneof("value") == _STORED for value in operation.attributes.values())
    return stored and name.startswith(_MODELS_OWN)


def short_name(number: int) -> str:
    """Return the identifier with `number` in the order A, ..., Z, Aa, Ba, ..., Z9, Aaa."""
    number, first = divmod(number, len(_FIRST))
    name = _FIRST[first]
    while number:
        number, letter = divmod(number - 1, len(_REST))
        name += _REST[letter]
    return name


def _rename(operation: MilOperation, names: dict[str, str]) -> None:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                binding.name = names.get(binding.name, binding.name)
    for output in operation.outputs:
        output.name = names.get(output.name, output.name)
