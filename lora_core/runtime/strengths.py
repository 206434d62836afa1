"""Strengths that adapters of a session have from now on, so that their names alone stand for them."""

from __future__ import annotations

import math
from collections.abc import Collection

import attrs

from lora_core.errors import UsageError
from lora_core.runtime.selection import Selection


@attrs.define(kw_only=True)
class Strengths:
    """What `Session.strength` was told, for sessions that take selections; 1 where nothing was."""

    own: dict[str, float] = attrs.field(factory=dict)

    def set(self, adapter: str, strength: float, known: Collection[str], where: str) -> None:
        """Let `adapter` have `strength`; raises `UsageError` for one that is not among `known`, or no finite number."""
        if not math.isfinite(strength):
            raise UsageError(f"The strength of adapter {adapter!r} must be a finite number, not {strength}.")
        Selection(strengths={adapter: 1.0}).require_known(known, where)
        self.own[adapter] = float(strength)

    def applied(self, text: str | None) -> str | None:
        """Return the selection that `text` means: each adapter at its strength there times its own.

        A text without adapters that have one is returned as it is. Raises `UsageError` for one that cannot be read.
        """
        if all(strength == 1.0 for strength in self.own.values()):  # asked at every step
            return text
        selection = Selection.parse(text)
        if all(self.own.get(name, 1.0) == 1.0 for name in selection.strengths):
            return text
        strengths = {name: strength * self.own.get(name, 1.0) for name, strength in selection.strengths.items()}
        if len(strengths) > 1:
            return "+".join(f"{name}:{strength!r}" for name, strength in strengths.items())
        ((name, strength),) = strengths.items()
        return f"{name}@{strength!r}"
