"""Whether a backend can carry what adapters do to its layers."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.kinds import KINDS
from lora_core.errors import Problem, UnsupportedError
from lora_core.specs import BackendSpec

_MERGE = "merge the adapter into {}its base with peft (merge_and_unload) and export the result as a base of its own."
_UNTIED = "an untied copy of (clone lm_head, set tie_word_embeddings to false) "


def refuse_kinds(spec: BackendSpec, adapters: Sequence[Adapter]) -> None:
    """Raise `UnsupportedError` with a problem for each feature of an adapter that `spec` does not declare."""
    problems = []
    for adapter in adapters:
        missing = {update.kind for update in adapter.updates} - set(spec.kinds)
        # Kinds of one feature, as trained tokens of an embedding and of its head, are told once.
        for kind in {kind.feature: kind for name, kind in KINDS.items() if name in missing}.values():
            why = spec.refused_kinds.get(kind.name, "its programs have no place for them")
            what = f"Backend {spec.name!r} cannot carry {kind.feature}, which adapter {adapter.name!r} has: {why}"
            problems.append(
                Problem(
                    what=what,
                    where=adapter.source,
                    remedy=f"Choose a backend that can, or {_MERGE.format(_UNTIED if kind.unties else '')}",
                )
            )
    if problems:
        raise UnsupportedError(problems)
