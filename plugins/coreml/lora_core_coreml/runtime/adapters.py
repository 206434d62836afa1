"""How a session calls adapters: as methods of their own, or as inputs of one method, at any strength and blended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.slots.kinds import Values
from lora_core.bundle.bundle import Bundle
from lora_core.capability import Capability
from lora_core.errors import BundleError, UnsupportedError
from lora_core.runtime.selection import Selection
from lora_core_coreml.adapter_files import opened, slot_values
from lora_core_coreml.program.naming import KEYS, Kind, input_method, method_name, slot_of
from lora_core_coreml.runtime.evaluation.program import EvaluatedProgram

Array = npt.NDArray[Any]


class CalledAdapters(Protocol):
    """What a session asks of either way; adapters are given as selections, None is the base."""

    def load(self, adapter: str | None) -> None:
        """Make what a call needs; raises `UsageError` for unknown names, `UnsupportedError` for what cannot be done."""

    def method(self, adapter: str | None, kind: Kind) -> str:
        """Return the method to call for an adapter that is loaded."""

    def inputs(self, adapter: str | None, kind: Kind) -> Sequence[Array]:
        """Return what the method takes behind the base's inputs."""

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget an adapter, and what no adapter of those that are `left` needs."""


@attrs.frozen
class AdaptersAsMethods:
    """Adapters as constants of methods of their own."""

    bundle: Bundle
    multifunction: bool

    def load(self, adapter: str | None) -> None:
        """Refuse everything but an adapter as it was linked."""
        selection = Selection.parse(adapter)
        selection.require_known(self.bundle.manifest.names, str(self.bundle.path))
        if selection.needs is not None:
            raise UnsupportedError(
                f"The adapters of this bundle are constants of its program, so {adapter!r} is none of its methods.",
                where=str(self.bundle.path),
                remedy="Export it with --lora inputs, where strengths and blends are those of a call, or link it as an "
                "adapter of its own: lora-core add BUNDLE --adapter NAME=DIR@STRENGTH.",
            )

    def method(self, adapter: str | None, kind: Kind) -> str:
        """Return the adapter's own method."""
        return method_name(adapter, kind, self.multifunction)

    def inputs(self, adapter: str | None, kind: Kind) -> Sequence[Array]:  # noqa: ARG002 - there are none
        """Return nothing."""
        return ()

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget nothing."""


@attrs.frozen(kw_only=True)
class _Plan:
    """What the methods of one slot plan take, by name and in order."""

    number: int
    keys: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    dtype: npt.DTypeLike


@attrs.frozen(kw_only=True)
class _Filled:
    """A selection as inputs of the methods of a plan."""

    plan: int
    inputs: Sequence[Array]


class AdaptersAsInputs:
    """Adapters as files of A and B, read once: scaled, and joined along their ranks where a plan has room for them."""

    def __init__(self, bundle: Bundle, program: EvaluatedProgram) -> None:
        self._bundle = bundle
        self._read: dict[str, Mapping[str, Values]] = {}
        self._filled: dict[str, _Filled] = {}
        self._plans = [_plan(number, program) for number in range(len(bundle.manifest.plans))]

    def load(self, adapter: str | None) -> None:
        """Read the files of an adapter, or of all that a selection names; raises `BundleError` for damaged ones."""
        if adapter is None or adapter in self._filled:
            return
        selection = Selection.parse(adapter)
        selection.require_known(self._bundle.manifest.names, str(self._bundle.path))
        parts = [(self._slots(name), strength) for name, strength in selection.strengths.items()]
        own = {each.name: each.plan for each in self._bundle.manifest.adapters}
        if selection.needs is Capability.BLEND:
            self._filled[adapter] = self._blended(adapter, parts)
        else:
            ((name, _),) = selection.strengths.items()
            self._filled[adapter] = _filled(self._plans[own[name]], _scaled(parts), str(self._bundle.path))

    def method(self, adapter: str | None, kind: Kind) -> str:
        """Return the base's method, or the one that takes adapters of the plan."""
        return kind if adapter is None else input_method(self._filled[adapter].plan, kind)

    def inputs(self, adapter: str | None, kind: Kind) -> Sequence[Array]:  # noqa: ARG002 - methods of a plan take the same
        """Return A and B of all slots, in the order in which the plan's methods take them."""
        return () if adapter is None else self._filled[adapter].inputs

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget a selection, and the files that no selection of those that are `left` takes part of."""
        self._filled.pop(str(adapter), None)
        kept = {name for each in left for name in Selection.parse(each).strengths}
        self._read = {name: slots for name, slots in self._read.items() if name in kept}

    def _slots(self, name: str) -> Mapping[str, Values]:
        if name not in self._read:
            self._read[name] = slot_values(opened(self._bundle, name))
        return self._read[name]

    def _blended(self, text: str, parts: Sequence[tuple[Mapping[str, Values], float]]) -> _Filled:
        live = [({module: _live(values) for module, values in slots.items()}, strength) for slots, strength in parts]
        joined = _scaled(live)
        ranks = {module: len(values["a"]) for module, values in joined.items() if len(values["a"])}
        for plan in self._plans:
            room = {
                slot_of(key)[0]: shape[0]
                for key, shape in zip(plan.keys, plan.shapes, strict=True)
                if key.endswith("a")
            }
            if all(rank <= room.get(module, 0) for module, rank in ranks.items()):
                return _filled(plan, joined, str(self._bundle.path))
        raise UnsupportedError(
            f"{text!r} needs rank {max(ranks.values())}, and no slot plan of this bundle has room for it everywhere: a "
            "blend takes the ranks of all its adapters together.",
            where=str(self._bundle.path),
            remedy=f"Export it with --max-rank {max(ranks.values())}, and with --targets all that the adapters target.",
        )


def _plan(number: int, program: EvaluatedProgram) -> _Plan:
    method = input_method(number, "forward")
    keys = program.constant(f"{method}{KEYS}")
    shapes, types = program.input_shapes(method), program.input_types(method)
    return _Plan(number=number, keys=keys, shapes=shapes[len(shapes) - len(keys) :], dtype=types[-1])


def _live(values: Values) -> Values:
    """Return A and B without the ranks that add nothing: what fills a slot up is zero."""
    kept = values["a"].any(axis=1) & values["b"].any(axis=0)
    return {"a": values["a"][kept], "b": values["b"][:, kept]}


def _scaled(parts: Sequence[tuple[Mapping[str, Values], float]]) -> dict[str, dict[str, npt.NDArray[np.float32]]]:
    """Return A and B by module whose effect is the sum of those of `parts`, each times its strength."""
    found: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for module in dict.fromkeys(module for slots, _ in parts for module in slots):
        here = [(slots[module], np.float32(strength)) for slots, strength in parts if module in slots]
        found[module] = {
            "a": np.concatenate([values["a"] for values, _ in here], axis=0),
            "b": np.concatenate([values["b"] * strength for values, strength in here], axis=1),
        }
    return found


def _filled(plan: _Plan, slots: Mapping[str, Values], where: str) -> _Filled:
    """Return the inputs of a plan's methods with `slots`, filled up with zeros; raises `BundleError`."""
    inputs = []
    for key, shape in zip(plan.keys, plan.shapes, strict=True):
        module, part = slot_of(key)
        filled = np.zeros(shape, np.float32)
        if module in slots:
            value = slots[module][part]
            if (
                value.shape[1 if part == "a" else 0] != shape[1 if part == "a" else 0]
                or np.greater(value.shape, shape).any()
            ):
                raise BundleError(f"{key} of shape {value.shape} does not fit the program's {shape}", where=where)
            filled[: value.shape[0], : value.shape[1]] = value
        with np.errstate(over="ignore"):
            inputs.append(filled.astype(plan.dtype))
    return _Filled(plan=plan.number, inputs=inputs)
