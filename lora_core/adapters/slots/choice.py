"""Which slot plan of several an adapter uses: decided here, once, and handed on as a pair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.misfits import misfits
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.errors import AdapterError
from lora_core.layers import LayerInfo


@attrs.frozen(kw_only=True)
class PlacedAdapter:
    """An adapter on its slot plan: what a backend links. `index` is the plan's place among those of the bundle."""

    adapter: Adapter
    plan: SlotPlan
    index: int = 0

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.adapter.name

    def values(self) -> Iterator[tuple[Slot, Values]]:
        """Yield every slot of the plan with the values that fill it, one slot in memory at a time.

        Ranks are padded to the slot's, scaling is folded in; a slot that the adapter does not target gets what does
        nothing. Raises `AdapterError` for values that float32 cannot hold.
        """
        return ((slot, slot.fold(update)) for slot, update in self.plan.bind(self.adapter))

    def values_by_module(self) -> dict[str, Values]:
        """Return the values of all slots, those of a module together, as `inject` takes them."""
        found: dict[str, Values] = {}
        for slot, values in self.values():
            found[slot.module] = {**found.get(slot.module, {}), **values}
        return found


def plan_for(plans: Sequence[SlotPlan], adapter: Adapter) -> int | None:
    """Return the index in `plans` of the plan that `adapter` uses; None if it fits none.

    That is the one that costs least among those that hold every update of the adapter (the first of equals): its own
    shape where there is a plan of exactly that shape, else the one with the least padding.
    """
    fitting = [(plan.size, index) for index, plan in enumerate(plans) if plan.holds(adapter)]
    return min(fitting)[1] if fitting else None


def place(adapters: Sequence[Adapter], plans: Sequence[SlotPlan]) -> tuple[PlacedAdapter, ...]:
    """Return every adapter on the plan of `plans` that it uses.

    Raises `AdapterError` with why each adapter that fits none does not fit the largest.
    """
    placed = [(adapter, plan_for(plans, adapter)) for adapter in adapters]
    largest = max(plans, key=lambda plan: plan.size, default=SlotPlan(slots=()))
    problems = [problem for adapter, index in placed if index is None for problem in misfits(largest, adapter)]
    if problems:
        raise AdapterError(problems)
    return tuple(
        PlacedAdapter(adapter=adapter, plan=plans[index], index=index) for adapter, index in placed if index is not None
    )


def place_alone(adapters: Sequence[Adapter], layers: Sequence[LayerInfo]) -> tuple[PlacedAdapter, ...]:
    """Return every adapter on a plan of its own, without padding: for backends that lower no slots."""
    return tuple(PlacedAdapter(adapter=each, plan=SlotPlan.from_adapters([each], layers)) for each in adapters)
