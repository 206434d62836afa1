"""Slots and slot plans: where LoRA can attach in a template, and at which rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from lora_core.adapters.adapter import Adapter, LoraPair
from lora_core.adapters.slots.misfits import misfits
from lora_core.adapters.slots.padding import padded_pair
from lora_core.adapters.slots.reserve import reserved_layers
from lora_core.errors import Problem, UsageError
from lora_core.models.base import LayerInfo

__all__ = ["Slot", "SlotCost", "SlotPlan", "padded_pair"]

_FLOAT32 = 4


@attrs.frozen(kw_only=True)
class Slot:
    """One linear layer of the base that can carry LoRA, at `rank`."""

    module: str
    in_features: int
    out_features: int
    rank: int

    @property
    def size(self) -> int:
        """Bytes of A and B at this slot's rank, in float32."""
        return _FLOAT32 * self.rank * (self.in_features + self.out_features)


@attrs.frozen(kw_only=True)
class SlotCost:
    """What an adapter occupies, in bytes of float32: `own` as it was trained, `padded` as a plan stores it."""

    adapter: str
    own: int
    padded: int


@attrs.frozen(kw_only=True)
class SlotPlan:
    """All slots of a template, in the base model's own layer order, each module once."""

    slots: tuple[Slot, ...]

    @classmethod
    def from_adapters(
        cls,
        adapters: Sequence[Adapter],
        layers: Sequence[LayerInfo],
        *,
        max_rank: int | None = None,
        targets: str | Sequence[str] | None = None,
    ) -> SlotPlan:
        """Return the plan that holds every adapter: the union of their targets, each at the largest rank needed.

        `max_rank` and `targets` reserve room for adapters to come. `targets` (`all-linear`, a regular expression, or
        names and last parts of names, as PEFT reads them) adds slots; `max_rank` raises every slot to that rank,
        without it an added slot gets the largest rank of any adapter. The result does not depend on the order of
        `adapters`. Raises `UsageError` if an adapter needs more than `max_rank`, if a target names no linear layer, or
        if there is no rank for `targets`.
        """
        ranks: dict[str, int] = {}
        for adapter in adapters:
            for pair in adapter.pairs:
                ranks[pair.module] = max(pair.rank, ranks.get(pair.module, 0))
        problems = _beyond(adapters, max_rank)
        reserved: frozenset[str] = frozenset()
        if targets is not None:
            reserved, unknown = reserved_layers(targets, layers)
            problems += unknown
            if max_rank is None and not ranks:
                remedy = "Say --max-rank N too."
                problems.append(Problem(what="There is no adapter to take the rank of --targets from", remedy=remedy))
        if problems:
            raise UsageError(problems)
        floor = max_rank or 0
        spare = max_rank or max(ranks.values(), default=0)
        for module in reserved:
            ranks[module] = max(ranks.get(module, 0), spare)
        return cls(
            slots=tuple(
                Slot(
                    module=layer.name,
                    in_features=layer.in_features,
                    out_features=layer.out_features,
                    rank=max(ranks[layer.name], floor),
                )
                for layer in layers
                if layer.name in ranks
            )
        )

    @classmethod
    def per_shape(cls, adapters: Sequence[Adapter], layers: Sequence[LayerInfo]) -> tuple[SlotPlan, ...]:
        """Return one plan for each distinct shape (modules and their ranks) among `adapters`, without any padding.

        The plans are in an order of their own that does not depend on that of `adapters`; `plans.plan_for` finds an
        adapter's.
        """
        return tuple(sorted({cls.from_adapters([adapter], layers) for adapter in adapters}, key=_order))

    @property
    def size(self) -> int:
        """Bytes that each adapter occupies in this plan, in float32."""
        return sum(slot.size for slot in self.slots)

    @property
    def max_rank(self) -> int:
        """The largest rank of any slot; 0 for a plan without slots."""
        return max((slot.rank for slot in self.slots), default=0)

    def cost(self, adapter: Adapter) -> SlotCost:
        """Return what `adapter` occupies in this plan against its own size."""
        own = sum(_FLOAT32 * pair.rank * (pair.in_features + pair.out_features) for pair in adapter.pairs)
        return SlotCost(adapter=adapter.name, own=own, padded=self.size)

    def misfits(self, adapter: Adapter) -> list[Problem]:
        """Return why `adapter` does not fit, which slot or rank is missing, and the export options that would reserve
        it; an empty list if it fits.
        """
        return misfits(self, adapter)

    def bind(self, adapter: Adapter) -> Iterator[tuple[Slot, LoraPair | None]]:
        """Yield every slot in order with the adapter's pair for it (None where it has none), for `padded_pair`."""
        pairs = {pair.module: pair for pair in adapter.pairs}
        return ((slot, pairs.get(slot.module)) for slot in self.slots)


def _beyond(adapters: Sequence[Adapter], max_rank: int | None) -> list[Problem]:
    if max_rank is not None and max_rank < 1:
        return [Problem(what=f"--max-rank must be at least 1, not {max_rank}")]
    return [
        Problem(
            what=f"Adapter {adapter.name!r} has rank {adapter.max_rank}, more than --max-rank {max_rank}",
            where=adapter.source,
            remedy=f"Say --max-rank {max(each.max_rank for each in adapters)}.",
        )
        for adapter in adapters
        if max_rank is not None and adapter.max_rank > max_rank
    ]


def _order(plan: SlotPlan) -> tuple[int, tuple[tuple[str, int], ...]]:
    return plan.size, tuple((slot.module, slot.rank) for slot in plan.slots)
