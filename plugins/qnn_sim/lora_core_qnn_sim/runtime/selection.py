"""What a session runs with: an adapter, an adapter at a strength, or several at once in a hot-switch context."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import attrs

from lora_core.adapters.reference import AdapterReference
from lora_core.errors import UsageError


@attrs.frozen(kw_only=True)
class Selection:
    """The strength of each adapter that takes part; empty for the base."""

    strengths: Mapping[str, float]

    @classmethod
    def parse(cls, text: str | None) -> Selection:
        """Read `NAME`, `NAME@0.5` or `NAME:0.7+NAME:0.3`, as composites are written; None is the base.

        Raises `UsageError` for anything else.
        """
        if text is None:
            return cls(strengths={})
        reference = AdapterReference.from_text(f"selected={text}")
        if reference.parts:
            return cls(strengths={part.of: part.strength * reference.strength for part in reference.parts})
        return cls(strengths={str(reference.directory or text): reference.strength})

    @property
    def single(self) -> str | None:
        """The only adapter, None for the base; `UsageError` for several."""
        if len(self.strengths) > 1:
            raise UsageError(
                f"Sections hold one adapter at a time, not {' and '.join(self.strengths)}",
                remedy="Export with --hot-switch to mix adapters at run time, or export a composite.",
            )
        return next(iter(self.strengths), None)

    def require_known(self, known: Collection[str]) -> None:
        """Raise `UsageError` if an adapter is not in `known`."""
        missing = [name for name in self.strengths if name not in known]
        if missing:
            names = ", ".join(repr(name) for name in missing)
            raise UsageError(
                f"The bundle has no adapter {names}", remedy=f"It has {', '.join(sorted(known)) or 'none'}."
            )

    def alphas(self, members: Sequence[str]) -> list[float]:
        """Return the alpha vector: one strength per member of a concurrency, or the one of an applied section."""
        if members:
            return [self.strengths.get(name, 0.0) for name in members]
        return [next(iter(self.strengths.values()), 1.0)]
