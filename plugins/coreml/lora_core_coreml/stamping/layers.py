"""The layers of a module that is lowered: of which kind each is, and the module with a few of them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.breaks import BlockWithBreak
from lora_core_coreml.lowering.methods import TracedMethod
from lora_core_coreml.lowering.shortening import BLOCKS, shortened
from lora_core_coreml.stamping.items import NotDerivableError
from lora_core_coreml.stamping.prediction import Kinds
from lora_core_coreml.weightless.standins import StandIns, what_stays

# What says where in the model a layer stands, not what it is.
_POSITION = "layer_id"


def layer_of(path: str) -> tuple[int, str] | None:
    """Return (layer, the rest) of the path of a module or tensor, None if it is in no layer."""
    room, _, inside = path.partition(".")
    number, _, rest = inside.partition(".")
    return (int(number), rest) if room == BLOCKS and number.isdigit() else None


def check_layers(prepared: PreparedBase) -> None:
    """Raise `NotDerivableError` for a module with static attention that is not a plain sequence of layers."""
    module = prepared.module
    layers: Any = getattr(module, BLOCKS, None)
    if not isinstance(layers, torch.nn.ModuleList) or any(isinstance(each, BlockWithBreak) for each in layers):
        raise NotDerivableError("the model is no plain sequence of layers")
    fields: dict[str, Any] = dict(vars(module.params)) if dataclasses.is_dataclass(module.params) else {}
    if not fields or fields.get("num_kv_shared_layers"):
        raise NotDerivableError("layers share their caches")
    by_layer = [n for n, value in fields.items() if isinstance(value, list | tuple) and len(value) == len(layers)]
    if by_layer:
        raise NotDerivableError(f"the definition says of each layer: {', '.join(by_layer)}")


def kinds_of(prepared: PreparedBase, plan: SlotPlan | None) -> Kinds:
    """Return the kind of each layer: layers of one kind differ in their weights only, and carry the same slots."""
    slots: dict[int, list[object]] = {}
    for slot in plan.slots if plan else ():
        found = layer_of(prepared.paths[slot.module])
        if found:
            slots.setdefault(found[0], []).append((found[1], attrs.astuple(attrs.evolve(slot, module=""))))
    seen: dict[str, int] = {}
    layers = _layers(prepared)
    return tuple(
        seen.setdefault(repr((_signature(layer), slots.get(number, []))), len(seen))
        for number, layer in enumerate(layers)
    )


def with_layers(prepared: PreparedBase, chosen: Sequence[int]) -> PreparedBase:
    """Return the base with the layers `chosen`, in that order, and stand-ins for all weights."""
    module = prepared.module
    layers = _layers(prepared)
    stand_ins = StandIns()
    rest = copy.copy(module)
    rest._modules = {**module._modules, BLOCKS: torch.nn.ModuleList()}
    made: Any = stand_ins.copy(rest)
    made.params = dataclasses.replace(module.params, n_layers=len(chosen))
    made.n_layers = len(chosen)
    for position, index in enumerate(chosen):
        layer = stand_ins.copy(layers[index])
        for part in layer.modules():
            if hasattr(part, _POSITION):
                setattr(part, _POSITION, position)
        made.layers.append(layer)
    return attrs.evolve(prepared, module=made, paths=dict(_paths(prepared, chosen)))


def without_layers(traced: TracedMethod, keep: Sequence[int]) -> TracedMethod:
    """Return a method of which the layers `keep` are left; raises `NotAChainError` if they cannot be cut out."""
    few = traced.prepared
    program = shortened(traced.edge.program, keep)
    module = copy.copy(few.module)
    layers = _layers(few)
    module._modules = {**few.module._modules, BLOCKS: torch.nn.ModuleList(layers[number] for number in keep)}
    paths = dict(_paths(few, keep))
    names = {path: name for name, path in paths.items()}
    sentinels = {}
    for key, part in traced.sentinels.items():
        path = few.paths[part.module]
        found = layer_of(path)
        if found is None or found[0] in keep:
            moved = path if found is None else f"{BLOCKS}.{keep.index(found[0])}.{found[1]}"
            sentinels[key] = attrs.evolve(part, module=names[moved])
    return TracedMethod(
        edge=attrs.evolve(traced.edge, program=program),
        prepared=attrs.evolve(few, module=module, paths=paths),
        sentinels=sentinels,
    )


def with_slots(prepared: PreparedBase, plan: SlotPlan, chosen: Sequence[int]) -> SlotPlan:
    """Return `plan` for the layers `chosen`; raises `NotDerivableError` if a layer has another name in its place."""
    names = {path: name for name, path in prepared.paths.items()}
    slots: list[Slot] = [slot for slot in plan.slots if layer_of(prepared.paths[slot.module]) is None]
    for position, index in enumerate(chosen):
        for slot in plan.slots:
            found = layer_of(prepared.paths[slot.module])
            if found is None or found[0] != index:
                continue
            path = f"{BLOCKS}.{position}.{found[1]}"
            if path not in names:
                raise NotDerivableError(f"no layer of the model is at {path}")
            slots.append(attrs.evolve(slot, module=names[path]))
    return SlotPlan(slots=tuple(slots))


def _layers(prepared: PreparedBase) -> Sequence[torch.nn.Module]:
    layers: Sequence[torch.nn.Module] = getattr(prepared.module, BLOCKS)
    return layers


def _paths(prepared: PreparedBase, chosen: Sequence[int]) -> Iterator[tuple[str, str]]:
    """Yield the names and paths of layers as they are with `chosen` ones."""
    names = {path: name for name, path in prepared.paths.items()}
    for name, path in prepared.paths.items():
        found = layer_of(path)
        if found is None:
            yield name, path
            continue
        for position, index in enumerate(chosen):
            moved = f"{BLOCKS}.{position}.{found[1]}"
            if index == found[0] and moved in names:
                yield names[moved], moved


def _signature(layer: torch.nn.Module) -> str:
    """Return a text that is equal for layers that differ in their weights only."""
    digest = hashlib.sha256(repr(sorted(what_stays(layer).items())).encode())
    for name, part in layer.named_modules():
        simple = {
            key: value
            for key, value in sorted(vars(part).items())
            if key != _POSITION and isinstance(value, int | float | str | tuple | type(None))
        }
        digest.update(repr((name, type(part).__qualname__, simple)).encode())
    return digest.hexdigest()
