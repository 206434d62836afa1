"""The slot kinds: what can hang on a layer of the base, by the names that manifests and relocation tables store."""

from __future__ import annotations

from collections.abc import Mapping

from lora_core.adapters.adapter import Adapter, Update
from lora_core.adapters.slots.embedding_kinds import Lookup, Rows, TokenLogits, Tokens
from lora_core.adapters.slots.kind import FLOAT32_SIZE, Extent, Part, SlotKind, Values, scaled
from lora_core.adapters.slots.linear_kinds import Dense, Gain, LowRank, Shift

__all__ = [
    "FLOAT32_SIZE",
    "KINDS",
    "Extent",
    "Part",
    "SlotKind",
    "Values",
    "extent_of",
    "is_zero",
    "kind_of",
    "max_rank",
    "scaled",
]

KINDS: Mapping[str, SlotKind] = {
    kind.name: kind for kind in (LowRank(), Gain(), Shift(), Dense(), Lookup(), Rows(), Tokens(), TokenLogits())
}
"""Every kind by name. Those on one layer act in the order of their names: a gain before what is added to it."""


def kind_of(name: str) -> SlotKind:
    """Return the kind called `name`; raises `KeyError` if this lora-core does not know it."""
    return KINDS[name]


def extent_of(update: Update) -> Extent:
    """Return the slot that `update` needs."""
    return kind_of(update.kind).extent(update)


def max_rank(adapter: Adapter) -> int:
    """Return the largest rank of any update."""
    return max(extent_of(update).rank for update in adapter.updates)


def is_zero(adapter: Adapter) -> bool:
    """Say whether every update does nothing: a factor of it is zero, or a gain is 1."""
    kinds = ((kind_of(update.kind), update) for update in adapter.updates)
    return all(kind.does_nothing(kind.fold(update, extent_of(update))) for kind, update in kinds)
