"""A function of a template, made one that takes its slots' parts as inputs: one function for all adapters.

A part of a slot is a constant that a `linear` layer has as its weight. MIL asks for a constant there, so the layer
becomes the `matmul` that coremltools makes of a linear layer whose weight is no constant.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import attrs

from lora_core.adapters.slots.input_names import input_key
from lora_core.errors import UnsupportedError
from lora_core_coreml.program.object import EmbeddedConstant, Function, PartitionFoundation, SlotPart
from lora_core_coreml.storage import blobfile, mil
from lora_core_coreml.storage.messages import FunctionDescription, MilBlock, MilOperation, MilType, MilValue

_BOOL, FLOAT16, FLOAT32 = 1, 10, 11
"""`DataType` of MIL.proto."""
_ARRAY_TYPES = {FLOAT16: 65552, FLOAT32: 65568}
"""The same as `ArrayDataType` of FeatureTypes.proto."""
# Offsets from here on stand for constants that the foundation does not have.
_UNPLACED = 1 << 62


@attrs.frozen(kw_only=True)
class SlotInput:
    """A part of a slot as an input: its name in functions, and the type of the constant that it was."""

    part: SlotPart
    name: str
    type: MilType

    @property
    def shape(self) -> list[int]:
        """The sizes."""
        return [dimension.constant.size for dimension in self.type.tensorType.dimensions]


def taking_inputs(function: Function, foundation: PartitionFoundation) -> tuple[Function, tuple[SlotInput, ...]]:
    """Return a template's function with the parts of its slots as inputs behind its own, and these.

    What the function computes is the same. Raises `UnsupportedError` for a part that is no weight of a linear layer.
    """
    return _Rewriting(function, foundation).run()


class _Rewriting:
    """One function of a template, made one that takes its slots' parts as inputs."""

    def __init__(self, function: Function, foundation: PartitionFoundation) -> None:
        self._before, self._foundation = function, foundation
        model = mil.new_model()
        self._message = model.mlProgram.functions["function"]
        self._message.CopyFrom(function.message)
        self._block: MilBlock = self._message.block_specializations[self._message.opset]
        self._taken = {value.name for value in self._message.inputs} | set(self._block.outputs)
        self._taken |= {output.name for operation in self._block.operations for output in operation.outputs}
        for number, (_, place) in enumerate(function.embedded_places):
            place.of(self._message).offset = _UNPLACED + number

    def run(self) -> tuple[Function, tuple[SlotInput, ...]]:
        inputs = self._inputs()
        constants = {operation.outputs[0].name: operation for operation in self._constants()}
        flags: dict[bool, MilOperation] = {}
        loose: set[str] = set()
        for operation in self._block.operations:
            for key, found in _uses(operation, inputs):
                if operation.type != "linear" or key != "weight":
                    raise UnsupportedError(f"{found.part} is no weight of a linear layer in the lowered program")
                loose |= self._require_no_bias(operation, constants, found.part)
                _as_matmul(operation, found.name, {flag: self._flag(flag, flags) for flag in (False, True)})
        self._put([operation for _, operation in sorted(flags.items())], dropped=inputs.keys(), loose=loose)
        for each in inputs.values():
            value = self._message.inputs.add()
            value.name = each.name
            value.type.CopyFrom(each.type)
        description = _described(self._before.description, inputs.values())
        changed = Function(message=self._message, description=description, embedded=self._embedded())
        return changed, tuple(inputs.values())

    def _inputs(self) -> dict[str, SlotInput]:
        """Return the parts of slots as inputs, by the names of the constants that they are now."""
        found: dict[str, SlotInput] = {}
        message = self._before.message
        operations = message.block_specializations[message.opset].operations
        for part, place in self._before.slot_places:
            if place.above or operations[place.operation].type != "const":
                raise UnsupportedError(f"{part} is no plain constant of the lowered program, so it can be no input")
            (output,) = operations[place.operation].outputs
            found[output.name] = SlotInput(part=part, name=self._name(part), type=output.type)
        return found

    def _name(self, part: SlotPart) -> str:
        base = re.sub(r"\W", "_", input_key(part.module, part.part))
        return self._new(base)

    def _new(self, name: str) -> str:
        number, found = 1, name
        while found in self._taken:
            number += 1
            found = f"{name}_{number}"
        self._taken.add(found)
        return found

    def _flag(self, value: bool, made: dict[bool, MilOperation]) -> str:
        if value not in made:
            operation = mil.new_model().mlProgram.functions["f"].block_specializations["o"].operations.add()
            operation.type = "const"
            output = operation.outputs.add()
            output.name = self._new(f"lora_{str(value).lower()}")
            output.type.tensorType.dataType = _BOOL
            held = operation.attributes["val"]
            held.type.tensorType.dataType = _BOOL
            held.immediateValue.tensor.bools.values.extend([value])
            made[value] = operation
        return made[value].outputs[0].name

    def _constants(self) -> Iterable[MilOperation]:
        return (operation for operation in self._block.operations if operation.type == "const")

    def _require_no_bias(
        self, operation: MilOperation, constants: Mapping[str, MilOperation], part: SlotPart
    ) -> set[str]:
        """Return the name of the bias, which a matmul has not: coremltools gives a layer without one zeros."""
        if "bias" not in operation.inputs:
            return set()
        (binding,) = operation.inputs["bias"].arguments
        if binding.name not in constants or not self._is_zero(constants[binding.name].attributes["val"]):
            raise UnsupportedError(f"The linear layer of {part} has a bias in the lowered program")
        return {binding.name}

    def _is_zero(self, value: MilValue) -> bool:
        if value.WhichOneof("value") == "immediateValue":
            tensor = value.immediateValue.tensor
            return not any(getattr(tensor, str(tensor.WhichOneof("value"))).values)
        offset = value.blobFileValue.offset
        if offset >= _UNPLACED:
            return not any(self._before.embedded[offset - _UNPLACED].data)
        blob = next(each for each in self._foundation.blobs if each.offset == offset)
        with blobfile.mapped(self._foundation.path) as buffer, memoryview(buffer) as view:
            start = self._foundation.start + blob.data_offset
            return not any(view[start : start + blob.size])

    def _put(self, first: Sequence[MilOperation], *, dropped: Iterable[str], loose: set[str]) -> None:
        """Begin with the operations `first`, and leave out constants: the `dropped`, and of the `loose` those that
        nothing uses any more.
        """
        used = Counter(name for operation in self._block.operations for name in _names(operation))
        gone = set(dropped) | {name for name in loose if not used[name] and name not in self._block.outputs}
        kept = [each for each in self._block.operations if each.type != "const" or each.outputs[0].name not in gone]
        copies = [*first, *kept]
        del self._block.operations[:]
        self._block.operations.extend(copies)

    def _embedded(self) -> tuple[EmbeddedConstant, ...]:
        """Return what of the embedded constants is left, by the numbers that their references have now."""
        found = []
        for number, (_, value) in enumerate(mil.blob_references(self._message)):
            if value.offset >= _UNPLACED:
                found.append(attrs.evolve(self._before.embedded[value.offset - _UNPLACED], reference=number))
                value.offset = 0
        return tuple(found)


def _uses(operation: MilOperation, inputs: Mapping[str, SlotInput]) -> list[tuple[str, SlotInput]]:
    """Return (argument, input) for each of `inputs` that an operation takes."""
    return [
        (key, inputs[binding.name])
        for key, argument in operation.inputs.items()
        for binding in argument.arguments
        if binding.WhichOneof("binding") == "name" and binding.name in inputs
    ]


def _names(operation: MilOperation) -> Iterable[str]:
    for argument in operation.inputs.values():
        for binding in argument.arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding.name


def _as_matmul(operation: MilOperation, weight: str, flags: Mapping[bool, str]) -> None:
    """Make a linear layer without a bias the product of its input and the transposed input `weight`."""
    operation.type = "matmul"
    for key in ("weight", "bias"):
        if key in operation.inputs:
            del operation.inputs[key]
    for key, name in (("y", weight), ("transpose_x", flags[False]), ("transpose_y", flags[True])):
        operation.inputs[key].arguments.add().name = name


def _described(description: FunctionDescription, inputs: Iterable[SlotInput]) -> FunctionDescription:
    """Return a function's inputs and outputs with `inputs` behind its own."""
    found = mil.new_model().description.functions.add()
    found.CopyFrom(description)
    for each in inputs:
        feature = found.input.add()
        feature.name = each.name
        feature.type.multiArrayType.dataType = _ARRAY_TYPES[each.type.tensorType.dataType]
        feature.type.multiArrayType.shape.extend(each.shape)
    return found
