"""Why an adapter does not fit a slot plan, and which export would make room for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_core.adapters.adapter import LOW_RANK, Adapter, Update
from lora_core.adapters.slots.kinds import extent_of, kind_of, max_rank
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.adapters.slots.reserve import last_parts
from lora_core.errors import Problem


def misfits(plan: SlotPlan, adapter: Adapter) -> list[Problem]:
    """Return a problem for each kind of layer whose slots are missing, too small, or of another size; none if it fits.

    The remedy names the export options that reserve room both for what the plan holds and for this adapter.
    """
    slots = {(slot.module, slot.kind): slot for slot in plan.slots}
    missing = [update for update in adapter.updates if (update.module, update.kind) not in slots]
    sized = [(update, slots[key]) for update in adapter.updates if (key := (update.module, update.kind)) in slots]
    foreign = [update for update, slot in sized if not slot.same_features(update)]
    small = [update for update, slot in sized if slot.same_features(update) and not slot.holds(update)]

    reservable, others = (
        [update for update in missing if (update.kind == LOW_RANK) is wanted] for wanted in (True, False)
    )

    def lacks_slot(updates: Sequence[Update]) -> str:
        return f"targets {_layers(updates)}, for which the template has no slot"

    def lacks_kind(updates: Sequence[Update]) -> str:
        return f"has {kind_of(updates[0].kind).feature} at {_layers(updates)}, for which the template has no slot"

    def lacks_rank(updates: Sequence[Update]) -> str:
        rank = max(extent_of(update).rank for update in updates)
        room = min(slots[update.module, update.kind].rank for update in updates)
        return f"has rank {rank} at {_layers(updates)}, where the template has room for {room}"

    def other_size(updates: Sequence[Update]) -> str:
        extent, slot = extent_of(updates[0]), slots[updates[0].module, updates[0].kind]
        return (
            f"is for layers of {extent.in_features} to {extent.out_features} features at {_layers(updates)}, "
            f"where the base has {slot.in_features} to {slot.out_features}"
        )

    room = f"Export again with {reserving_options(plan, adapter)}."
    return [
        *_problems(adapter, reservable, lacks_slot, room),
        *(
            problem
            for kind in sorted({update.kind for update in others})
            for problem in _problems(
                adapter,
                [update for update in others if update.kind == kind],
                lacks_kind,
                "Export again with this adapter: room for such updates is made where an adapter needs it.",
            )
        ),
        *_problems(adapter, small, lacks_rank, room),
        *_problems(adapter, foreign, other_size, "It was trained for another base."),
    ]


def reserving_options(plan: SlotPlan, adapter: Adapter) -> str:
    """Return the export options that reserve room for all of `plan` and for `adapter`."""
    modules = [slot.module for slot in plan.slots] + [update.module for update in adapter.updates]
    rank = max(plan.max_rank, max_rank(adapter))
    return f"--max-rank {rank} --targets {','.join(last_parts(modules))}"


def _problems(
    adapter: Adapter, updates: Sequence[Update], describe: Callable[[Sequence[Update]], str], remedy: str
) -> list[Problem]:
    kinds = [
        [update for update in updates if last_parts([update.module]) == (part,)]
        for part in last_parts([update.module for update in updates])
    ]
    return [
        Problem(what=f"Adapter {adapter.name!r} {describe(kind)}", where=adapter.source, remedy=remedy)
        for kind in kinds
    ]


def _layers(updates: Sequence[Update]) -> str:
    first = updates[0].module
    part = first.rpartition(".")[2]
    return first if len(updates) == 1 else f"{part} in {len(updates)} layers (first {first})"
