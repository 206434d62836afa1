# ruff: noqa: TID253  this module is imported only while exporting, with torch already loaded
"""Which layers of a model are of one kind, and which few layers stand for all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch

from lora_core.adapters.slots.plan import SlotPlan
from lora_core_xnnpack.stamping.shallow import LayeredBase

_LONGEST_PERIOD = 8
_LEAST_REPEATS = 3


@attrs.frozen(kw_only=True)
class Run:
    """Layers from `start` on: a unit of `period` layers, `repeats` times."""

    start: int
    period: int
    repeats: int

    def layers(self, repeats: int) -> tuple[int, ...]:
        """Return the first `repeats` units, as numbers of layers."""
        return tuple(range(self.start, self.start + self.period * repeats))


def kinds(base: LayeredBase, plans: Sequence[SlotPlan]) -> list[int]:
    """Return the kind of each layer: layers of one kind have the same modules, sizes, settings, schemes and slots."""
    layers = base.layers
    numbering = _numbering(layers)
    found: dict[object, int] = {}
    names = {path: name for name, path in base.base.model.paths.items()}
    slots: dict[str, list[object]] = {}
    for number, plan in enumerate(plans):
        for slot in plan.slots:
            slots.setdefault(slot.module, []).append(
                (number, slot.kind, slot.rank, slot.in_features, slot.out_features)
            )
    result = []
    for index, layer in enumerate(layers):
        parts: list[object] = []
        for path, part in layer.named_modules():
            name = names.get(f"{base.blocks}.{index}.{path}")
            decided = base.base.assignment.schemes.get(name) if name else None
            parts.append((path, _described(part, numbering), decided, tuple(slots.get(name or "", ()))))
        result.append(found.setdefault(tuple(parts), len(found)))
    return result


def runs(found: Sequence[int]) -> tuple[Run, ...]:
    """Return kinds of layers as repetitions, from the first layer to the last."""
    result: list[Run] = []
    start = 0
    while start < len(found):
        best = Run(start=start, period=1, repeats=1)
        for period in range(1, _LONGEST_PERIOD + 1):
            unit = found[start : start + period]
            repeats = 1
            while found[start + repeats * period : start + (repeats + 1) * period] == unit:
                repeats += 1
            if repeats >= _LEAST_REPEATS and period * repeats > best.period * best.repeats:
                best = Run(start=start, period=period, repeats=repeats)
        result.append(best)
        start += best.period * best.repeats
    return tuple(result)


def _numbering(layers: Sequence[torch.nn.Module]) -> frozenset[str]:
    """Return the names of attributes in which layers hold their own number."""
    candidates: dict[str, bool] = {}
    for index, layer in enumerate(layers):
        for part in layer.modules():
            for name, value in _settings(part):
                if type(value) is int:
                    candidates[name] = candidates.get(name, True) and value == index
    return frozenset(name for name, always in candidates.items() if always)


def _described(part: torch.nn.Module, numbering: frozenset[str]) -> object:
    tensors: Mapping[str, Any] = {**part._parameters, **part._buffers}
    return (
        f"{type(part).__module__}.{type(part).__qualname__}",
        tuple((name, repr(value)) for name, value in _settings(part) if name not in numbering),
        tuple((name, tuple(each.shape), str(each.dtype)) for name, each in tensors.items() if each is not None),
    )


def _settings(part: torch.nn.Module) -> list[tuple[str, Any]]:
    """Return the plain attributes of a module."""
    return sorted(
        (name, value) for name, value in vars(part).items() if isinstance(value, int | float | str | tuple | None)
    )
