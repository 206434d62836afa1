"""Slots and slot plans: where adapters can attach in a template, and how large."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import attrs

from lora_core.adapters.adapter import LOW_RANK, Adapter, Update
from lora_core.adapters.slots.kinds import Extent, Part, Values, extent_of, kind_of, max_rank
from lora_core.adapters.slots.reserve import reserved_layers
from lora_core.errors import Problem, UsageError
from lora_core.layers import LayerInfo


@attrs.frozen(kw_only=True)
class Slot:
    """One place on a layer of the base that can carry updates of `kind`, up to `rank`."""

    module: str
    in_features: int
    out_features: int
    rank: int
    kind: str = LOW_RANK

    @property
    def extent(self) -> Extent:
        """How large the slot is."""
        return Extent(in_features=self.in_features, out_features=self.out_features, rank=self.rank)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The tensors that fill the slot."""
        return kind_of(self.kind).parts(self.extent)

    @property
    def size(self) -> int:
        """Bytes of all parts, in float32."""
        return sum(part.size for part in self.parts)

    def holds(self, update: Update) -> bool:
        """Say whether `update` fits: of this kind, for a layer of this size, at this rank or a smaller one."""
        return update.kind == self.kind and self.same_features(update) and extent_of(update).rank <= self.rank

    def same_features(self, update: Update) -> bool:
        """Say whether `update` was trained for a layer of this size."""
        extent = extent_of(update)
        return extent.in_features in (0, self.in_features) and extent.out_features == self.out_features

    def fold(self, update: Update | None) -> Values:
        """Return the values of the parts that carry `update`, which must fit; None: that do nothing."""
        return kind_of(self.kind).fold(update, self.extent)


@attrs.frozen(kw_only=True)
class SlotCost:
    """What an adapter occupies, in bytes of float32: `own` as it was trained, `padded` as a plan stores it."""

    adapter: str
    own: int
    padded: int


@attrs.frozen(kw_only=True)
class SlotPlan:
    """All slots of a template, in the base model's own layer order, each module once for each kind."""

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
        ranks: dict[tuple[str, str], int] = {}
        for adapter in adapters:
            for update in adapter.updates:
                key = (update.module, update.kind)
                ranks[key] = max(extent_of(update).rank, ranks.get(key, 0))
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
        spare = max_rank or max((rank for (_, kind), rank in ranks.items() if kind == LOW_RANK), default=0)
        for module in reserved:
            ranks[module, LOW_RANK] = max(ranks.get((module, LOW_RANK), 0), spare)
        kinds = sorted({kind for _, kind in ranks})
        return cls(
            slots=tuple(
                Slot(
                    module=layer.name,
                    in_features=layer.in_features,
                    out_features=layer.out_features,
                    rank=max(ranks[layer.name, kind], floor if kind == LOW_RANK else 0),
                    kind=kind,
                )
                for layer in layers
                for kind in kinds
                if (layer.name, kind) in ranks
            )
        )

    @classmethod
    def per_shape(cls, adapters: Sequence[Adapter], layers: Sequence[LayerInfo]) -> tuple[SlotPlan, ...]:
        """Return one plan for each distinct shape (modules and their ranks) among `adapters`, without any padding.

        The plans are in an order of their own that does not depend on that of `adapters`; `choice.plan_for` finds an
        adapter's.
        """
        return tuple(sorted({cls.from_adapters([adapter], layers) for adapter in adapters}, key=_order))

    @cached_property
    def size(self) -> int:
        """Bytes that each adapter occupies in this plan, in float32."""
        return sum(slot.size for slot in self.slots)

    @property
    def max_rank(self) -> int:
        """The largest rank of any slot; 0 for a plan without slots."""
        return max((slot.rank for slot in self.slots), default=0)

    def cost(self, adapter: Adapter) -> SlotCost:
        """Return what `adapter` occupies in this plan against its own size."""
        own = sum(part.size for update in adapter.updates for part in kind_of(update.kind).parts(extent_of(update)))
        return SlotCost(adapter=adapter.name, own=own, padded=self.size)

    def holds(self, adapter: Adapter) -> bool:
        """Say whether every update of `adapter` fits a slot."""
        found = ((self._by_place.get((update.module, update.kind)), update) for update in adapter.updates)
        return all(slot is not None and slot.holds(update) for slot, update in found)

    @cached_property
    def _by_place(self) -> Mapping[tuple[str, str], Slot]:
        return {(slot.module, slot.kind): slot for slot in self.slots}

    def bind(self, adapter: Adapter) -> Iterator[tuple[Slot, Update | None]]:
        """Yield every slot in order with the adapter's update for it (None where it has none), for `Slot.fold`."""
        updates = {(update.module, update.kind): update for update in adapter.updates}
        return ((slot, updates.get((slot.module, slot.kind))) for slot in self.slots)


def _beyond(adapters: Sequence[Adapter], limit: int | None) -> list[Problem]:
    if limit is not None and limit < 1:
        return [Problem(what=f"--max-rank must be at least 1, not {limit}")]
    return [
        Problem(
            what=f"Adapter {adapter.name!r} has rank {max_rank(adapter)}, more than --max-rank {limit}",
            where=adapter.source,
            remedy=f"Say --max-rank {max(max_rank(each) for each in adapters)}.",
        )
        for adapter in adapters
        if limit is not None and max_rank(adapter) > limit
    ]


def _order(plan: SlotPlan) -> tuple[int, tuple[tuple[str, int], ...]]:
    return plan.size, tuple((slot.module, slot.rank) for slot in plan.slots)
