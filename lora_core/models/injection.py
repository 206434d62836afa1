"""Injection: wrap the slots' layers of any `nn.Module` with what hangs on them, and take the wrapping off again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch  # noqa: TID253 - nothing imports this module before weights are loaded

from lora_core.adapters.slots.kinds import kind_of
from lora_core.adapters.slots.modules import SlotModule
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import AdapterError, Problem


def inject(
    module: torch.nn.Module, plan: SlotPlan, paths: Mapping[str, str], values: Mapping[str, Mapping[str, Any]]
) -> torch.nn.Module:
    """Wrap the layer of every slot of `plan` in `module`, in place, and return the module.

    `paths` map layer names to their names in `module` (`BaseModel.paths`). `values` hold for every slot's module its
    parts by name (`Slot.parts`), NumPy or torch, of the slot's shapes; their memory is used as it is where it is
    float32 and contiguous. The returned module is another object only if the slot is the module itself. Raises
    `AdapterError` with every slot that does not fit, and then leaves `module` as it was.
    """
    problems: list[Problem] = []
    fitting: list[tuple[str, Slot]] = []
    for slot in plan.slots:
        found = _check(module, slot, paths, values)
        problems += found
        if not found:
            fitting.append((paths[slot.module], slot))
    planned = {slot.module for slot in plan.slots}
    problems += [Problem(what=f"There is no slot for the values of {name}") for name in values if name not in planned]
    if problems:
        raise AdapterError(problems)
    for path, slot in fitting:
        parts = {part.name: _float32(values[slot.module][part.name]) for part in slot.parts}
        module = _replace(module, path, kind_of(slot.kind).wrap(module.get_submodule(path), parts))
    return module


def eject(module: torch.nn.Module) -> torch.nn.Module:
    """Put every wrapped layer back in place, the very object that `inject` found, and return the module."""
    for path, layer in list(slot_modules(module)):
        base: Any = layer
        while isinstance(base, SlotModule):
            base = base.base
        module = _replace(module, path, base)
    return module


def slot_modules(module: torch.nn.Module) -> Iterable[tuple[str, SlotModule]]:
    """Yield the wrapped layers of `module` with their paths, in module order; of nested ones the outermost."""
    outermost: str | None = None
    for path, layer in module.named_modules():
        if isinstance(layer, SlotModule) and (outermost is None or not path.startswith(outermost)):
            outermost = f"{path}." if path else ""
            yield path, layer


def wrapped_layers(module: torch.nn.Module) -> Iterator[tuple[str, str, torch.nn.Module]]:
    """Yield for every wrapped layer of `module` its path, the path of what is wrapped, and that layer."""
    for path, layer in slot_modules(module):
        inner = path
        base: Any = layer
        while isinstance(base, SlotModule):
            inner, base = f"{inner}.base".lstrip("."), base.base
        yield path, inner, base


def part_parameters(module: torch.nn.Module, path: str) -> dict[str, str]:
    """Return the name of the parameter of `module` that holds each part of the slots on its layer at `path`."""
    found: dict[str, str] = {}
    layer: Any = module.get_submodule(path)
    while isinstance(layer, SlotModule):
        found |= {part: f"{path}.{name}".lstrip(".") for part, name in layer.PARTS.items()}
        path, layer = f"{path}.base".lstrip("."), layer.base
    return found


def slot_parameters(module: torch.nn.Module) -> frozenset[str]:
    """Return the names of all parameters of `module` that hold parts of slots."""
    return frozenset(
        f"{path}.{name}" if path else name
        for path, layer in module.named_modules()
        if isinstance(layer, SlotModule)
        for name in layer.PARTS.values()
    )


def _check(
    module: torch.nn.Module, slot: Slot, paths: Mapping[str, str], values: Mapping[str, Mapping[str, Any]]
) -> list[Problem]:
    """Return what keeps `slot` from being filled."""
    if slot.module not in paths:
        return [Problem(what=f"Slot {slot.module} is no layer of the model")]
    if slot.module not in values:
        return [Problem(what=f"Slot {slot.module} has no values")]
    if isinstance(module.get_submodule(paths[slot.module]), SlotModule):
        return [Problem(what=f"Slot {slot.module} already carries an update", remedy="Eject it first.")]
    given = values[slot.module]
    missing = [Problem(what=f"Slot {slot.module} has no value for {p.name}") for p in slot.parts if p.name not in given]
    return missing or [
        Problem(
            what=f"{part.name.upper()} of slot {slot.module} has shape {tuple(given[part.name].shape)}; "
            f"the slot needs {part.shape}"
        )
        for part in slot.parts
        if tuple(given[part.name].shape) != part.shape
    ]


def _float32(value: Any) -> torch.Tensor:
    tensor = value if isinstance(value, torch.Tensor) else torch.from_numpy(value)
    return tensor.detach().to(torch.float32).contiguous()


def _replace(module: torch.nn.Module, path: str, layer: torch.nn.Module) -> torch.nn.Module:
    if not path:
        return layer
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
    return module
