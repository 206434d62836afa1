"""A lowered method as lists of items, and back.

What compaction replaces is left out: a value is known by the operation that makes it, and only inputs, outputs and the
model's own weights have names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from lora_core_coreml.lowering.inputs import IndexTable
from lora_core_coreml.lowering.method import LoweredMethod
from lora_core_coreml.program.compaction import keeps_its_name
from lora_core_coreml.stamping.items import Document, Item, NotDerivableError, item
from lora_core_coreml.stamping.layers import layer_of
from lora_core_coreml.storage import mil
from lora_core_coreml.storage.messages import MilModel, MilOperation
from lora_core_coreml.weightless.program import ConstantOrigin

# How ExecuTorch's static attention names the cache of a layer, in structures and in names of inputs.
_CACHE = re.compile(r"\bl(\d+),h\d+|_l(\d+)_h\d+$")


@attrs.frozen(kw_only=True)
class StampedMethod:
    """A method of one partition with the origins of its constants, and where its inputs and outputs are."""

    lowered: LoweredMethod
    origins: tuple[ConstantOrigin, ...]
    table: IndexTable


def to_document(method: StampedMethod, paths: Mapping[str, str]) -> Document:
    """Return the lists of a method; `paths` are those of the module that it was lowered from.

    Raises `NotDerivableError` for a method with more than one delegate, or operators of its own.
    """
    model = method.lowered.packages[0].model if len(method.lowered.packages) == 1 else None
    plan = method.lowered.plan
    instructions = [each for chain in plan["chains"] for each in chain["instructions"]]
    if model is None or plan["operators"] or [each["instr_args_type"] for each in instructions] != ["DelegateCall"]:
        raise NotDerivableError(f"method {method.lowered.name} is more than one CoreML function")
    return {**_plan_lists(method, plan, instructions[0]), **_function_lists(method, model, paths), **_table(method)}


def _cache_layer(text: str) -> int | None:
    found = _CACHE.search(text)
    return int(found.group(1) or found.group(2)) if found else None


def _labelled(label: str, value: Any) -> Item:
    return item([label, value], layer=_cache_layer(label))


def _plan_lists(method: StampedMethod, plan: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, list[Item]]:
    table, arguments = method.table, call["instr_args"]["args"]
    labels = {
        **dict(zip(plan["inputs"], table.inputs, strict=True)),
        **{value: f"out {label}" for value, label in zip(plan["outputs"], table.outputs, strict=True)},
    }
    if sorted(labels) != list(range(len(plan["values"]))) or sorted(arguments) != sorted(labels):
        raise NotDerivableError(f"method {method.lowered.name} has values that are neither inputs nor outputs")
    rest = {**plan, **{name: [] for name in ("values", "inputs", "outputs")}}
    rest["chains"] = [{**plan["chains"][0], "instructions": [_call(call, [])]}]
    structures = rest.pop("container_meta_type")
    return {
        "values": [_labelled(labels[number], value) for number, value in enumerate(plan["values"])],
        "inputs": [_labelled(labels[number], number) for number in plan["inputs"]],
        "outputs": [_labelled(labels[number], number) for number in plan["outputs"]],
        "arguments": [_labelled(labels[number], number) for number in arguments],
        "plan": [item([list(plan), rest])],
        "input structure": _structure(structures["encoded_inp_str"]),
        "output structure": _structure(structures["encoded_out_str"]),
    }


def _call(call: Mapping[str, Any], arguments: list[int]) -> dict[str, Any]:
    return {**call, "instr_args": {**call["instr_args"], "args": arguments}}


def _structure(text: str) -> list[Item]:
    """Return pytree's text of a structure as items; a dictionary of caches has one for each."""
    version, root = json.loads(text)
    items = [item(version), *_node(root)]
    if structure_text(items) != text:
        raise NotDerivableError("the structure of inputs or outputs is written in another way")
    return items


def _node(node: Mapping[str, Any]) -> Iterator[Item]:
    children = node["children_spec"]
    keys = json.loads(node["context"]) if node["type"] == "builtins.dict" else []
    if keys and all(_cache_layer(str(key)) is not None for key in keys):
        yield item(["caches", node["type"]])
        yield from (_labelled(key, child) for key, child in zip(keys, children, strict=True))
    else:
        yield item(["node", node["type"], node["context"], len(children)])
        for child in children:
            yield from _node(child)
    yield item(["end"])


def structure_text(items: Sequence[Item]) -> str:
    """Return the text of a structure whose items these are."""
    values = iter([each.value for each in items])
    version = next(values)
    return json.dumps([version, _parsed(next(values), values)])


def _parsed(head: Sequence[Any], values: Iterator[Any]) -> dict[str, Any]:
    if head[0] == "caches":
        entries = []
        while (value := next(values)) != ["end"]:
            entries.append(value)
        keys, children = [key for key, _ in entries], [child for _, child in entries]
        return {"type": head[1], "context": json.dumps(keys), "children_spec": children}
    children = [_parsed(next(values), values) for _ in range(head[3])]
    next(values)
    return {"type": head[1], "context": head[2], "children_spec": children}


def _function_lists(method: StampedMethod, model: MilModel, paths: Mapping[str, str]) -> dict[str, list[Item]]:
    (function,) = (each.function for each in method.lowered.packages)
    block = function.block_specializations[function.opset]
    labels = [each.value[0] for each in _plan_arguments(method)][len(function.inputs) :]
    names: dict[str, list[int]] = {each.name: [0, number, 0] for number, each in enumerate(function.inputs)}
    layers = {each.name: _cache_layer(each.name) for each in function.inputs}
    operations = []
    origins = iter(method.origins)
    kept = set(block.outputs)
    for number, operation in enumerate(block.operations):
        if operation.blocks:
            raise NotDerivableError(f"method {method.lowered.name} has nested blocks")
        operations.append(_operation(operation, names, layers, origins, kept, paths))
        names |= {output.name: [1, number, place] for place, output in enumerate(operation.outputs)}
    return {
        "function inputs": [_named(each, _cache_layer(each.name)) for each in function.inputs],
        "operations": operations,
        "function outputs": [
            item([label, names[name]], layer=_cache_layer(label))
            for label, name in zip(labels, block.outputs, strict=True)
        ],
        "described inputs": [_named(each, _cache_layer(each.name)) for each in model.description.input],
        "described outputs": [
            _named(each, _cache_layer(label)) for label, each in zip(labels, model.description.output, strict=True)
        ],
        "described states": [_named(each, None) for each in model.description.state],
    }


def _plan_arguments(method: StampedMethod) -> list[Item]:
    plan = method.lowered.plan
    return _plan_lists(method, plan, plan["chains"][0]["instructions"][0])["arguments"]


def _named(message: Any, layer: int | None) -> Item:
    """Return an item of a message that has a name; the name is its text."""
    blank = type(message)()
    blank.CopyFrom(message)
    blank.name = ""
    return item(message.name, opaque=mil.serialize(blank), layer=layer)


def _operation(
    operation: MilOperation,
    names: Mapping[str, list[int]],
    layers: Mapping[str, int | None],
    origins: Iterator[ConstantOrigin],
    kept: set[str],
    paths: Mapping[str, str],
) -> Item:
    blank = type(operation)()
    blank.CopyFrom(operation)
    blank.attributes.pop("name", None)
    used = []
    for binding in bindings(blank):
        used.append(binding.name)
        binding.name = ""
    outputs = [
        output.name if keeps_its_name(operation, output.name) or output.name in kept else None
        for output in operation.outputs
    ]
    for output in blank.outputs:
        output.name = ""
    constants = []
    for reference in mil.references_of(blank):
        reference.offset = 0
        constants.append(next(origins))
    shape = mil.serialize(blank)
    text = {
        "size": len(shape),
        "from": [names[name] for name in used],
        "names": outputs,
        "constants": [_origin_value(origin) for origin in constants],
    }
    opaque = shape + b"".join(origin.data for origin in constants)
    named = [layer for origin in constants if (layer := _origin_layer(origin, paths)) is not None]
    named += [layer for name in used if (layer := layers.get(name)) is not None]
    return item(text, opaque=opaque, layer=max(named, default=None))


def bindings(operation: MilOperation) -> Iterator[Any]:
    """Yield the arguments of an operation that name a value, in a fixed order."""
    for key in sorted(operation.inputs):
        for binding in operation.inputs[key].arguments:
            if binding.WhichOneof("binding") == "name":
                yield binding


def _origin_value(origin: ConstantOrigin) -> list[Any]:
    form = [origin.form.path, origin.form.part, origin.form.transform] if origin.form else None
    slot = [origin.slot.module, origin.slot.part] if origin.slot else None
    return [origin.dtype, origin.padding_bits, form, slot, len(origin.data)]


def _origin_layer(origin: ConstantOrigin, paths: Mapping[str, str]) -> int | None:
    path = origin.form.path if origin.form else paths[origin.slot.module] if origin.slot else ""
    found = layer_of(path)
    return found[0] if found else None


def _table(method: StampedMethod) -> dict[str, list[Item]]:
    """Return the numbers of the method's table, which the metadata of the base has."""
    # Its rows are told one by one; what is left of it holds its place, since constant methods have an order.
    entries = {**method.table.entries, "kv_cache_specs": []}
    rows = zip(method.table.caches, method.table.entries["kv_cache_specs"], strict=True)
    return {"table": [item(entries)], "caches": [_labelled(key, row) for key, row in rows]}
