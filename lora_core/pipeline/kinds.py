"""Whether a backend can carry what adapters do to its layers."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.kinds import kind_of
from lora_core.errors import Problem, UnsupportedError
from lora_core.specs import BackendSpec


def refuse_kinds(spec: BackendSpec, adapters: Sequence[Adapter]) -> None:
    """Raise `UnsupportedError` with a problem for each kind of update that `spec` does not declare."""
    problems = [
        Problem(
            what=f"Backend {spec.name!r} cannot carry {kind_of(kind).feature or kind}, which adapter "
            f"{adapter.name!r} has: its programs have no place for them",
            where=adapter.source,
            remedy="Choose a backend that can, or merge the adapter into its base with peft (merge_and_unload) and "
            "export the result as a base of its own.",
        )
        for adapter in adapters
        for kind in sorted({update.kind for update in adapter.updates} - set(spec.kinds))
    ]
    if problems:
        raise UnsupportedError(problems)
