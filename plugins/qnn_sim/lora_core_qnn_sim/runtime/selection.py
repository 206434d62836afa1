"""A selection of adapters as the context takes it: one section, or an alpha vector."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.errors import UsageError
from lora_core.runtime.selection import Selection


def single_of(selection: Selection) -> str | None:
    """Return the only adapter, None for the base; raises `UsageError` for several."""
    if len(selection.strengths) > 1:
        raise UsageError(
            f"Sections hold one adapter at a time, not {' and '.join(selection.strengths)}",
            remedy="Export with --hot-switch to mix adapters at run time, or export a composite.",
        )
    return next(iter(selection.strengths), None)


def alphas_of(selection: Selection, members: Sequence[str]) -> list[float]:
    """Return the alpha vector: one strength per member of a concurrency, or the one of an applied section."""
    if members:
        return [selection.strengths.get(name, 0.0) for name in members]
    return [next(iter(selection.strengths.values()), 1.0)]
