"""Lists of items back to a lowered method."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from lora_core_coreml.lowering.constants import LoweredPackage
from lora_core_coreml.lowering.inputs import IndexTable
from lora_core_coreml.program.object import SlotPart
from lora_core_coreml.stamping.document import StampedMethod, bindings, structure_text
from lora_core_coreml.stamping.items import Document, Item
from lora_core_coreml.storage import mil
from lora_core_coreml.storage.messages import MilModel, MilOperation
from lora_core_coreml.weightless.forms import TensorForm
from lora_core_coreml.weightless.program import ConstantOrigin


def from_document(document: Document, example: StampedMethod) -> StampedMethod:
    """Return the method of `document`; `example` is one of another depth, whose constant methods it gets."""
    model, origins = _model(document, example.lowered.packages[0].model)
    lowered = attrs.evolve(example.lowered, plan=_plan(document), packages=(LoweredPackage(model=model, constants=()),))
    return StampedMethod(lowered=lowered, origins=origins, table=table_of(document))


def table_of(document: Document) -> IndexTable:
    """Return where the method's inputs and outputs are."""
    entries = dict(document["table"][0].value)
    rows = [each.value for each in document["caches"]]
    return IndexTable(
        inputs=tuple(each.value[0] for each in document["inputs"]),
        outputs=tuple(each.value[0].removeprefix("out ") for each in document["outputs"]),
        entries={**entries, "kv_cache_specs": [row for _, row in rows]},
        caches=tuple(key for key, _ in rows),
    )


def _plan(document: Document) -> dict[str, Any]:
    order, rest = document["plan"][0].value
    for name in ("values", "inputs", "outputs"):
        rest[name] = [each.value[1] for each in document[name]]
    rest["chains"][0]["instructions"][0]["instr_args"]["args"] = [each.value[1] for each in document["arguments"]]
    rest["container_meta_type"] = {
        "encoded_inp_str": structure_text(document["input structure"]),
        "encoded_out_str": structure_text(document["output structure"]),
    }
    # flatc lays out the fields of a table in the order in which they are given.
    return {name: rest[name] for name in order}


def _model(document: Document, example: MilModel) -> tuple[MilModel, tuple[ConstantOrigin, ...]]:
    model = mil.new_model()
    model.CopyFrom(example)
    (name,) = model.mlProgram.functions
    function = model.mlProgram.functions[name]
    block = function.block_specializations[function.opset]
    del function.inputs[:]
    del block.operations[:]
    del block.outputs[:]
    names: dict[tuple[int, int, int], str] = {}
    for number, each in enumerate(document["function inputs"]):
        _fill_named(function.inputs.add(), each)
        names[(0, number, 0)] = each.value
    origins: list[ConstantOrigin] = []
    for number, each in enumerate(document["operations"]):
        origins += _fill_operation(block.operations.add(), each, number, names)
    block.outputs.extend(names[tuple(each.value[1])] for each in document["function outputs"])
    for field, found in (("input", "inputs"), ("output", "outputs"), ("state", "states")):
        features = getattr(model.description, field)
        del features[:]
        for each in document[f"described {found}"]:
            _fill_named(features.add(), each)
    return model, tuple(origins)


def _fill_named(message: Any, each: Item) -> None:
    message.ParseFromString(each.opaque)
    message.name = each.value


def _fill_operation(
    operation: MilOperation, each: Item, number: int, names: dict[tuple[int, int, int], str]
) -> Iterator[ConstantOrigin]:
    content = each.value
    operation.ParseFromString(each.opaque[: content["size"]])
    for binding, source in zip(bindings(operation), content["from"], strict=True):
        binding.name = names[tuple(source)]
    for place, (output, name) in enumerate(zip(operation.outputs, content["names"], strict=True)):
        output.name = names[(1, number, place)] = name or f"v{number}_{place}"
    at = content["size"]
    for dtype, padding_bits, form, slot, size in content["constants"]:
        yield ConstantOrigin(
            name=form[0] if form else "constant",
            dtype=dtype,
            padding_bits=padding_bits,
            form=TensorForm(path=form[0], part=form[1], transform=form[2]) if form else None,
            slot=SlotPart(module=slot[0], part=slot[1]) if slot else None,
            data=each.opaque[at : at + size],
        )
        at += size
