"""Slots and slot plans: where LoRA can attach in a template, and at which rank."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Slot:
    """One linear layer of the base that can carry LoRA, at `rank`."""

    module: str
    in_features: int
    out_features: int
    rank: int


@attrs.frozen(kw_only=True)
class SlotPlan:
    """All slots of a template, in the base model's own layer order, each module once."""

    slots: tuple[Slot, ...]
