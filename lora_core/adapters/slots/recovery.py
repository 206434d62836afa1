"""From the values that fill slots back to updates, in the smallest types that hold them exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.adapter import LOW_RANK, Update
from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.tensors import narrow, widen

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True, eq=False)
class HeldTensor:
    """A tensor in memory, as a `lora_core.tensors.LazyTensor`."""

    name: str
    values: npt.NDArray[np.float32]
    dtype: str
    path: Path = Path()

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return tuple(self.values.shape)

    def read(self) -> npt.NDArray[np.float32]:
        """Return the values."""
        return np.ascontiguousarray(self.values)


def recovered_updates(plan: SlotPlan, values: Mapping[str, Values]) -> tuple[Update, ...]:
    """Return updates that fill the slots of `plan` with `values` again, bit for bit.

    Scaling stays folded in. Slots that hold what does nothing are left out, and of low-rank ones the ranks at the end
    that hold only zeros.
    """
    updates = []
    for slot in plan.slots:
        parts = {part.name: values[slot.module][part.name] for part in slot.parts}
        kept = _without_padding(parts) if slot.kind == LOW_RANK else _unless_idle(slot, parts)
        if kept is not None:
            tensors = {name: _held(f"{slot.module} {name}", array) for name, array in kept.items()}
            updates.append(Update(module=slot.module, kind=slot.kind, tensors=tensors, scaling=1.0))
    return tuple(updates) or (_nothing(plan.slots[0]),)


def _without_padding(parts: Values) -> Values | None:
    a, b = (np.ascontiguousarray(parts[name]) for name in ("a", "b"))
    used = a.view(np.uint32).any(axis=1) | b.view(np.uint32).any(axis=0)  # bits: minus zero is no padding
    rank = int(np.flatnonzero(used)[-1]) + 1 if used.any() else 0
    if rank == 0:
        return None
    return {"a": a[:rank], "b": np.ascontiguousarray(b[:, :rank])}


def _held(name: str, values: npt.NDArray[np.float32]) -> HeldTensor:
    bits = np.ascontiguousarray(values).view(np.uint32)
    for dtype in ("F16", "BF16"):
        with np.errstate(over="ignore"):
            stored = narrow(values, dtype)
        if np.array_equal(widen(stored.view(np.uint8).reshape(-1), dtype).view(np.uint32), bits.reshape(-1)):
            return HeldTensor(name=name, values=values, dtype=dtype)
    return HeldTensor(name=name, values=values, dtype="F32")


def _unless_idle(slot: Slot, parts: Values) -> Values | None:
    idle = slot.fold(None)
    same = all(np.ascontiguousarray(parts[name]).tobytes() == array.tobytes() for name, array in idle.items())
    return None if same else parts


def _nothing(slot: Slot) -> Update:
    """Return an update that changes nothing: an adapter has at least one."""
    least = attrs.evolve(slot, rank=1)
    tensors = {name: _held(name, array) for name, array in least.fold(None).items()}
    return Update(module=slot.module, kind=slot.kind, tensors=tensors, scaling=1.0)
