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
from collections.abc import Iterator
from typing import Any

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


def blob_references(function: MilFunction) -> Iterator[tuple[str, MilReference]]:
    """Yield (constant's name, its `BlobFileValue`) for every reference of a function into the blob file, in order."""
    for operation in operations(function):
        name = operation.outputs[0].name if operation.outputs else operation.type
        for key, reference in _references(operation):
            yield f"{name}.{key}" if key else name, reference


def references_of(operation: MilOperation) -> Iterator[MilReference]:
    """Yield the references of one operation, in order."""
    yield from (reference for _, reference in _references(operation))


def _references(operation: MilOperation) -> Iterator[tuple[str, MilReference]]:
    """Yield (argument, reference): in an attribute (`const`, no argument) or inline (`constexpr_*`)."""
    for key in sorted(operation.attributes):
        value = operation.attributes[key]
        if value.WhichOneof("value") == "blobFileValue":
            yield "", value.blobFileValue
    for key in sorted(operation.inputs):
        for binding in operation.inputs[key].arguments:
            if binding.WhichOneof("binding") == "value" and binding.value.WhichOneof("value") == "blobFileValue":
                yield key, binding.value.blobFileValue


def operations(function: MilFunction) -> Iterator[MilOperation]:
    """Yield the operations of a function, those of nested blocks included."""
    for block in _blocks(function):
        yield from block.operations


def _blocks(function: MilFunction) -> Iterator[MilBlock]:
    pending = [function.block_specializations[function.opset]]
    while pending:
        block = pending.pop(0)
        yield block
        for operation in block.operations:
            pending.extend(operation.blocks)
