"""Placeholder matrices for lowering a template: distinct for every slot, so that each can be found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_core.adapters.slots.plan import SlotPlan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def placeholder_pairs(plan: SlotPlan) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """Return for every slot's module A (rank, in_features) and B (out_features, rank), float32.

    No two matrices have the same bytes, none is zero, and the same plan always gives the same matrices: they are drawn
    from a generator with a fixed seed, small enough that a template's program stays finite when it is run.
    """
    import numpy as np

    generator = np.random.Generator(np.random.PCG64(seed=0x10BA))
    pairs = {}
    for slot in plan.slots:
        a = generator.standard_normal((slot.rank, slot.in_features), dtype=np.float32)
        b = generator.standard_normal((slot.out_features, slot.rank), dtype=np.float32)
        pairs[slot.module] = (a * np.float32(0.01), b * np.float32(0.01))
    return pairs
