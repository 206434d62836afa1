"""Which slot plans an export gets, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import extent_of
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import UsageError
from lora_core.layers import LayerInfo

PlanKind = Literal["union", "per-shape"]


def make_plans(
    kind: PlanKind,
    adapters: Sequence[Adapter],
    layers: Sequence[LayerInfo],
    *,
    max_rank: int | None,
    targets: str | Sequence[str] | None,
) -> tuple[SlotPlan, ...]:
    """Return one plan for all adapters (`union`) or one for each distinct shape (`per-shape`); none without slots.

    `max_rank` and `targets` reserve room for adapters to come: in the one plan, or, per shape, as a plan of its own.
    Raises `UsageError`.
    """
    if kind not in ("union", "per-shape"):
        raise UsageError(f"There is no plan {kind!r}.", remedy="Choices: union, per-shape.")
    if kind == "union":
        union = SlotPlan.from_adapters(adapters, layers, max_rank=max_rank, targets=targets)
        return (union,) if union.slots else ()
    plans = SlotPlan.per_shape(adapters, layers)
    if max_rank is None and targets is None:
        return plans
    if max_rank is None or targets is None:
        raise UsageError(
            "With --plan per-shape, room for adapters to come is a template of its own.",
            remedy="Say both --max-rank and --targets, or neither.",
        )
    reserved = SlotPlan.from_adapters((), layers, max_rank=max_rank, targets=targets)
    return (*plans, *({reserved} - set(plans)))


def describe(plans: Sequence[SlotPlan], adapters: Sequence[PlacedAdapter]) -> Iterator[str]:
    """Say what `plans` cost: templates to lower, and the bytes that padding adds to adapters."""
    for index, plan in enumerate(plans):
        using = [placed for placed in adapters if placed.index == index]
        named = f"Slot plan {index + 1} of {len(plans)}" if len(plans) > 1 else "Slot plan"
        padding = _padding(using)
        added = f", {_size(padding)} of it padding" if padding else ""
        count = "1 adapter" if len(using) == 1 else f"{len(using)} adapters"
        yield (
            f"{named}: one template with {len(plan.slots)} slots up to rank {plan.max_rank}; "
            f"{count} in {_size(plan.size * len(using))}{added}."
        )
    shapes = len({_shape(placed.adapter) for placed in adapters})
    if len(plans) == 1 and shapes > 1:
        yield (
            f"With --plan per-shape there would be {shapes} templates to lower instead of 1, and no padding "
            f"({_size(_padding(adapters))} less)."
        )


def _padding(adapters: Sequence[PlacedAdapter]) -> int:
    costs = [placed.plan.cost(placed.adapter) for placed in adapters]
    return sum(cost.padded - cost.own for cost in costs)


def _shape(adapter: Adapter) -> tuple[tuple[str, str, int], ...]:
    return tuple((update.module, update.kind, extent_of(update).rank) for update in adapter.updates)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size:,} bytes"
