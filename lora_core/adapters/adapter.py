"""An adapter as data: what it changes of each module, its tensors read lazily."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import attrs

from lora_core.moved import missing

if TYPE_CHECKING:
    from lora_core.tensors import LazyTensor

LOW_RANK = "low_rank"
"""The kind of update that every LoRA adapter is made of: two matrices, A and B (`lora_core.adapters.slots.kinds`)."""


@attrs.frozen(kw_only=True)
class Update:
    """What an adapter does to one module: the tensors of one slot kind by part, and how strongly they count.

    `module` is the target's name as the Hugging Face model spells it (`model.layers.0.self_attn.q_proj`), `kind` the
    name of a `SlotKind`, which says what `tensors` there are. For `low_rank`, `out = base(x) + scaling * x @ A.T @ B.T`
    with `a` of shape (rank, in_features) and `b` (out_features, rank). `scaling` is already what PEFT computes:
    `alpha / r`, or `alpha / sqrt(r)` with rsLoRA, patterns applied, times the adapter's strength.
    """

    module: str
    kind: str = LOW_RANK
    tensors: Mapping[str, LazyTensor]
    scaling: float


@attrs.frozen(kw_only=True)
class Adapter:
    """A named set of updates.

    `updates` are in natural order of their module names, each module once for each kind. `digest` is the SHA-256 hex of
    what was read (weights and configuration); `source` says where it came from, for messages only, and is never stored
    in a bundle. `base_model` is PEFT's `base_model_name_or_path`, if it was given. `fitted_for` is the fingerprint of
    the foundation whose rounding the adapter makes up for (`lora-core fit-adapter`), None for one as it was trained.
    """

    name: str
    updates: tuple[Update, ...]
    digest: str
    source: str
    base_model: str | None = None
    fitted_for: str | None = None

    def scaled(self, strength: float) -> Adapter:
        """Return this adapter with its effect times `strength`; the digest tells the strength, 1 changes nothing."""
        if strength == 1.0:
            return self
        return attrs.evolve(
            self,
            updates=tuple(attrs.evolve(update, scaling=update.scaling * strength) for update in self.updates),
            digest=hashlib.sha256(f"{self.digest}@{strength!r}".encode()).hexdigest(),
        )


def __getattr__(name: str) -> object:
    raise missing(__name__, name)
