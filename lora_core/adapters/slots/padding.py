"""The bytes of a slot: A and B padded to the slot's rank, with the scaling folded into B."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_core.adapters.adapter import LoraPair
from lora_core.errors import AdapterError

if TYPE_CHECKING:
    import numpy.typing as npt

    from lora_core.adapters.slots.plan import Slot


def padded_pair(pair: LoraPair | None, slot: Slot) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return A of shape (slot.rank, in_features) and B of (out_features, slot.rank): float32, C-contiguous, fresh.

    B carries the scaling (`folded_b`), so that the graph does not depend on it. Rows of A and columns of B beyond the
    pair's rank are zero, which is exact; without a pair both are zero. `pair` must fit `slot` (`SlotPlan.misfits`).
    """
    a = np.zeros((slot.rank, slot.in_features), dtype=np.float32)
    b = np.zeros((slot.out_features, slot.rank), dtype=np.float32)
    if pair is not None:
        a[: pair.rank] = pair.a.read()
        b[:, : pair.rank] = folded_b(pair)
    return a, b


def folded_b(pair: LoraPair) -> npt.NDArray[np.float32]:
    """Return `B * scaling`: the scaling is computed in double precision and rounded once to float32, each product is
    one float32 multiplication. Everything that folds does it here, so that a link writes what an export wrote.

    Raises `AdapterError` if a product overflows.
    """
    try:
        with np.errstate(over="raise"):
            return pair.b.read() * np.float32(pair.scaling)
    except FloatingPointError as error:
        raise AdapterError(
            f"B times its scaling {pair.scaling} is more than float32 holds.",
            where=f"{pair.b.path}: {pair.b.name}",
            remedy="Check lora_alpha and the strength.",
        ) from error
