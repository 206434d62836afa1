"""Adapters as inputs of methods: scaled, and joined along their ranks where a slot plan has room for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.slots.input_names import InputPlan, slot_of
from lora_core.capability import Capability
from lora_core.errors import BundleError, UnsupportedError
from lora_core.runtime.selection import Selection

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_core.adapters.slots.kinds import Values

    Slots = Mapping[str, Values]


@attrs.frozen(kw_only=True)
class FilledInputs:
    """A selection as inputs of the methods of a plan."""

    plan: int
    inputs: Sequence[npt.NDArray[Any]]


class SlotInputs:
    """The adapters of a bundle that were asked for, each read once."""

    def __init__(
        self,
        plans: Sequence[InputPlan],
        adapters: Mapping[str, int],
        read: Callable[[str], Slots],
        *,
        dtype: npt.DTypeLike,
        where: str,
    ) -> None:
        """`plans` are what the bundle's slot plans take, in the type `dtype`, and `adapters` have the plan of each.

        `read` gives A and B of all slots of one, as float32; an array that needs no change is handed on as it is.
        Errors name the bundle as `where`.
        """
        self._plans, self._adapters, self._read_one = plans, adapters, read
        self._dtype, self._where = dtype, where
        self._read: dict[str, Slots] = {}
        self._filled: dict[str, FilledInputs] = {}

    def load(self, adapter: str) -> FilledInputs:
        """Return an adapter, or all that a selection names, as inputs; reads files on first use.

        Raises `UsageError` for unknown names, `UnsupportedError` for a blend that no plan has room for, and
        `BundleError` for a damaged file.
        """
        if adapter not in self._filled:
            selection = Selection.parse(adapter)
            selection.require_known(self._adapters, self._where)
            parts = [(self._slots(name), strength) for name, strength in selection.strengths.items()]
            if selection.needs is Capability.BLEND:
                self._filled[adapter] = self._blended(adapter, parts)
            else:
                ((name, _),) = selection.strengths.items()
                self._filled[adapter] = self._fill(self._adapters[name], _joined(parts))
        return self._filled[adapter]

    def unload(self, adapter: str | None, left: Iterable[str | None]) -> None:
        """Forget a selection, and the files that no selection of those that are `left` takes part of."""
        self._filled.pop(str(adapter), None)
        kept = {name for each in left for name in Selection.parse(each).strengths}
        self._read = {name: slots for name, slots in self._read.items() if name in kept}

    def clear(self) -> None:
        """Forget everything."""
        self._filled.clear()
        self._read.clear()

    def _slots(self, name: str) -> Slots:
        if name not in self._read:
            self._read[name] = self._read_one(name)
        return self._read[name]

    def _blended(self, text: str, parts: Sequence[tuple[Slots, float]]) -> FilledInputs:
        live = [({module: _live(values) for module, values in slots.items()}, strength) for slots, strength in parts]
        joined_slots = _joined(live)
        ranks = {module: len(values["a"]) for module, values in joined_slots.items() if len(values["a"])}
        for number, plan in enumerate(self._plans):
            room = {
                slot_of(key)[0]: shape[0]
                for key, shape in zip(plan.keys, plan.shapes, strict=True)
                if slot_of(key)[1] == "a"
            }
            if all(rank <= room.get(module, 0) for module, rank in ranks.items()):
                return self._fill(number, joined_slots)
        raise UnsupportedError(
            f"{text!r} needs rank {max(ranks.values())}, and no slot plan of this bundle has room for it everywhere: a "
            "blend takes the ranks of all its adapters together.",
            where=self._where,
            remedy=f"Export it with --max-rank {max(ranks.values())}, and with --targets all that the adapters target.",
        )

    def _fill(self, number: int, slots: Slots) -> FilledInputs:
        """Return the inputs of a plan's methods with `slots`, filled up with zeros; raises `BundleError`."""
        plan = self._plans[number]
        inputs = []
        for key, shape in zip(plan.keys, plan.shapes, strict=True):
            module, part = slot_of(key)
            inputs.append(self._filled_up(key, slots[module][part] if module in slots else None, shape))
        return FilledInputs(plan=number, inputs=inputs)

    def _filled_up(self, key: str, value: npt.NDArray[Any] | None, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        import numpy as np

        if value is not None and value.shape == shape and value.dtype == self._dtype and value.flags.c_contiguous:
            return value
        filled = np.zeros(shape, np.float32)
        if value is not None:
            features = 0 if slot_of(key)[1] == "b" else 1
            if value.shape[features] != shape[features] or np.greater(value.shape, shape).any():
                where = self._where
                raise BundleError(f"{key} of shape {value.shape} does not fit the program's {shape}", where=where)
            filled[: value.shape[0], : value.shape[1]] = value
        with np.errstate(over="ignore"):
            return filled.astype(self._dtype, copy=False)


def joined(updates: Sequence[tuple[Values, float]]) -> Values:
    """Return A and B of a slot whose effect is the sum of those of `updates`, each times its strength: joined along
    their ranks, the strengths in B.
    """
    import numpy as np

    if len(updates) == 1 and updates[0][1] == 1:
        return updates[0][0]
    return {
        "a": np.concatenate([values["a"] for values, _ in updates], axis=0),
        "b": np.concatenate([values["b"] * np.float32(strength) for values, strength in updates], axis=1),
    }


def _joined(parts: Sequence[tuple[Slots, float]]) -> dict[str, Values]:
    modules = dict.fromkeys(module for slots, _ in parts for module in slots)
    return {
        module: joined([(slots[module], strength) for slots, strength in parts if module in slots])
        for module in modules
    }


def _live(values: Values) -> Values:
    """Return A and B without the ranks that add nothing: what fills a slot up is zero."""
    kept = values["a"].any(axis=1) & values["b"].any(axis=0)
    return {"a": values["a"][kept], "b": values["b"][:, kept]}
