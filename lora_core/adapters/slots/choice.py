"""Which slot plan of several an adapter uses."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.plan import Slot, SlotPlan


def plan_for(plans: Sequence[SlotPlan], adapter: Adapter) -> int | None:
    """Return the index in `plans` of the plan that `adapter` uses; None if it fits none.

    That is the one that costs least among those that hold every pair of the adapter (the first of equals): its own
    shape where there is a plan of exactly that shape, else the one with the least padding.
    """
    fitting = [(_parameters(plan), index) for index, plan in enumerate(plans) if _holds(plan, adapter)]
    return min(fitting)[1] if fitting else None


def _holds(plan: SlotPlan, adapter: Adapter) -> bool:
    slots: dict[str, Slot] = {slot.module: slot for slot in plan.slots}
    for pair in adapter.pairs:
        slot = slots.get(pair.module)
        if slot is None or pair.rank > slot.rank:
            return False
        if (pair.in_features, pair.out_features) != (slot.in_features, slot.out_features):
            return False
    return True


def _parameters(plan: SlotPlan) -> int:
    return sum(slot.rank * (slot.in_features + slot.out_features) for slot in plan.slots)
