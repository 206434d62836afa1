"""Why an adapter does not fit a slot plan, and which export would make room for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from lora_core.adapters.adapter import Adapter, LoraPair
from lora_core.adapters.slots.reserve import last_parts
from lora_core.errors import Problem

if TYPE_CHECKING:
    from lora_core.adapters.slots.plan import Slot, SlotPlan


def misfits(plan: SlotPlan, adapter: Adapter) -> list[Problem]:
    """Return a problem for each kind of layer whose slots are missing, too small, or of another size; none if it fits.

    The remedy names the export options that reserve room both for what the plan holds and for this adapter.
    """
    slots = {slot.module: slot for slot in plan.slots}
    missing = [pair for pair in adapter.pairs if pair.module not in slots]
    sized = [pair for pair in adapter.pairs if pair.module in slots]
    foreign = [pair for pair in sized if not _same_size(pair, slots[pair.module])]
    small = [pair for pair in sized if _same_size(pair, slots[pair.module]) and pair.rank > slots[pair.module].rank]

    def lacks_slot(pairs: Sequence[LoraPair]) -> str:
        return f"targets {_layers(pairs)}, for which the template has no slot"

    def lacks_rank(pairs: Sequence[LoraPair]) -> str:
        rank = max(pair.rank for pair in pairs)
        room = min(slots[pair.module].rank for pair in pairs)
        return f"has rank {rank} at {_layers(pairs)}, where the template has room for {room}"

    def other_size(pairs: Sequence[LoraPair]) -> str:
        slot = slots[pairs[0].module]
        return (
            f"is for layers of {pairs[0].in_features} to {pairs[0].out_features} features at {_layers(pairs)}, "
            f"where the base has {slot.in_features} to {slot.out_features}"
        )

    room = f"Export again with {reserving_options(plan, adapter)}."
    return [
        *_problems(adapter, missing, lacks_slot, room),
        *_problems(adapter, small, lacks_rank, room),
        *_problems(adapter, foreign, other_size, "It was trained for another base."),
    ]


def reserving_options(plan: SlotPlan, adapter: Adapter) -> str:
    """Return the export options that reserve room for all of `plan` and for `adapter`."""
    modules = [slot.module for slot in plan.slots] + [pair.module for pair in adapter.pairs]
    rank = max(plan.max_rank, adapter.max_rank)
    return f"--max-rank {rank} --targets {','.join(last_parts(modules))}"


def _problems(
    adapter: Adapter, pairs: Sequence[LoraPair], describe: Callable[[Sequence[LoraPair]], str], remedy: str
) -> list[Problem]:
    kinds = [
        [pair for pair in pairs if last_parts([pair.module]) == (part,)]
        for part in last_parts([pair.module for pair in pairs])
    ]
    return [
        Problem(what=f"Adapter {adapter.name!r} {describe(kind)}", where=adapter.source, remedy=remedy)
        for kind in kinds
    ]


def _layers(pairs: Sequence[LoraPair]) -> str:
    first = pairs[0].module
    part = first.rpartition(".")[2]
    return first if len(pairs) == 1 else f"{part} in {len(pairs)} layers (first {first})"


def _same_size(pair: LoraPair, slot: Slot) -> bool:
    return (pair.in_features, pair.out_features) == (slot.in_features, slot.out_features)
