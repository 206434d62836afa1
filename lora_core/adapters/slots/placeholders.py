"""Placeholder values for lowering a template: distinct for every slot, so that each can be found again."""

from __future__ import annotations

from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.plan import SlotPlan


def placeholder_values(plan: SlotPlan) -> dict[str, Values]:
    """Return values for the parts of every slot by module, float32.

    No two have the same bytes, none is zero, and the same plan always gives the same values: they are drawn from a
    generator with a fixed seed, small enough that a template's program stays finite when it is run.
    """
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(seed=0x10BA))
    values: dict[str, Values] = {}
    for slot in plan.slots:
        drawn = {part.name: generator.standard_normal(part.shape, dtype=np.float32) for part in slot.parts}
        scaled = {name: array * np.float32(0.01) for name, array in drawn.items()}
        values[slot.module] = {**values.get(slot.module, {}), **scaled}
    return values
