"""The `model.mlmodel` protobuf: programs, functions and their references into the blob file.

coremltools ships the protobuf classes, but importing coremltools takes seconds and pulls in torch, which linking an
adapter does not need. So the generated modules are imported from their directory as a package of our own; a process
that imports coremltools as well gets the same classes, because protobuf keeps one class for each descriptor.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs

from lora_core.errors import BundleError, UnsupportedError
from lora_core_coreml.storage.messages import Message, MilBlock, MilFunction, MilModel, MilOperation, MilReference

WEIGHTS_NAME = "@model_path/weights/weight.bin"
_ALIAS = "lora_core_coreml._coremltools_proto"


def proto() -> Any:
    """Return coremltools' `Model_pb2` module without importing coremltools; raises `UnsupportedError`."""
    if _ALIAS not in sys.modules:
        found = importlib.util.find_spec("coremltools")
        if found is None or not found.submodule_search_locations:
            raise UnsupportedError(
                "coremltools is not installed", remedy="Install lora-core-coreml with its dependencies."
            )
        spec = importlib.machinery.ModuleSpec(_ALIAS, None, is_package=True)
        spec.submodule_search_locations = [f"{found.submodule_search_locations[0]}/proto"]
        sys.modules[_ALIAS] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{_ALIAS}.Model_pb2")


def new_model() -> MilModel:
    """Return an empty `CoreML.Specification.Model`."""
    model: MilModel = proto().Model()
    return model


def parse_model(data: bytes) -> MilModel:
    """Parse a serialized `CoreML.Specification.Model`; raises `BundleError`."""
    model = new_model()
    try:
        model.ParseFromString(data)
    except importlib.import_module("google.protobuf.message").DecodeError as error:
        raise BundleError(f"The CoreML model inside the program is damaged: {error}") from error
    return model


def serialize(message: Message) -> bytes:
    """Serialize with sorted map keys, so that equal messages have equal bytes."""
    return message.SerializeToString(deterministic=True)


@attrs.frozen(kw_only=True)
class ReferencePlace:
    """Where a reference into the blob file stands in a function: (operation, block inside it) pairs down to a block, an
    operation of that, and an attribute of it, or with `binding` an argument of its input `key`.

    Every copy of a function has its references at the same places, so they are looked for in one of them alone.
    """

    above: tuple[tuple[int, int], ...]
    operation: int
    key: str
    binding: int | None

    def of(self, function: MilFunction) -> MilReference:
        """Return the reference at this place; raises `ValueError` or `IndexError` for a function of another form."""
        block = function.block_specializations[function.opset]
        for operation, inner in self.above:
            block = block.operations[operation].blocks[inner]
        found = block.operations[self.operation]
        if self.binding is None:
            value = found.attributes[self.key]
        else:
            argument = found.inputs[self.key].arguments[self.binding]
            value = argument.value
        if value.WhichOneof("value") != "blobFileValue":
            raise ValueError(f"operation {self.operation} of a function refers to no weight")
        return value.blobFileValue


def reference_places(function: MilFunction) -> tuple[ReferencePlace, ...]:
    """Return where the references of a function stand, in the order of `blob_references`."""
    return tuple(
        ReferencePlace(above=above, operation=number, key=key, binding=binding)
        for above, block in _blocks(function)
        for number, operation in enumerate(block.operations)
        for key, binding, _ in _references(operation)
    )


def blob_references(function: MilFunction) -> Iterator[tuple[str, MilReference]]:
    """Yield (constant's name, its `BlobFileValue`) for every reference of a function into the blob file, in order."""
    for operation in operations(function):
        name = operation.outputs[0].name if operation.outputs else operation.type
        for key, binding, reference in _references(operation):
            yield name if binding is None else f"{name}.{key}", reference


def references_of(operation: MilOperation) -> Iterator[MilReference]:
    """Yield the references of one operation, in order."""
    yield from (reference for _, _, reference in _references(operation))


def _references(operation: MilOperation) -> Iterator[tuple[str, int | None, MilReference]]:
    """Yield (key, number, reference): of an attribute (`const`, no number), or of an argument (`constexpr_*`)."""
    for key in sorted(operation.attributes):
        value = operation.attributes[key]
        if value.WhichOneof("value") == "blobFileValue":
            yield key, None, value.blobFileValue
    for key in sorted(operation.inputs):
        for number, binding in enumerate(operation.inputs[key].arguments):
            if binding.WhichOneof("binding") == "value" and binding.value.WhichOneof("value") == "blobFileValue":
                yield key, number, binding.value.blobFileValue


def operations(function: MilFunction) -> Iterator[MilOperation]:
    """Yield the operations of a function, those of nested blocks included."""
    for _, block in _blocks(function):
        yield from block.operations


def _blocks(function: MilFunction) -> Iterator[tuple[tuple[tuple[int, int], ...], MilBlock]]:
    """Yield the blocks of a function, each with the operations and blocks that lead to it."""
    pending: deque[tuple[tuple[tuple[int, int], ...], MilBlock]] = deque()
    pending.append(((), function.block_specializations[function.opset]))
    while pending:
        above, block = pending.popleft()
        yield above, block
        for number, operation in enumerate(block.operations):
            for inner, each in enumerate(operation.blocks):
                pending.append(((*above, (number, inner)), each))
