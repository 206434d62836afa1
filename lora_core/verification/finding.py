"""What one check found."""

from __future__ import annotations

from typing import Any

import attrs

from lora_core.outcome import Outcome

_SHOWN = 6


@attrs.frozen(kw_only=True)
class Finding:
    """One check of one subject: a method's name, an adapter's, or `bundle`."""

    check: str
    subject: str
    outcome: Outcome
    detail: str = ""

    @property
    def failed(self) -> bool:
        """True if the check does not hold."""
        return self.outcome is Outcome.FAILED

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**attrs.asdict(self), "outcome": self.outcome.value}


def found(check: str, subject: str, problems: list[str], *, held: str = "") -> Finding:
    """Return a failed finding with the first of `problems`, or a passed one that says what `held`."""
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        return Finding(check=check, subject=subject, outcome=Outcome.FAILED, detail="; ".join(problems[:_SHOWN] + more))
    return Finding(check=check, subject=subject, outcome=Outcome.PASSED, detail=held)


def unchecked(check: str, subject: str, why: str) -> Finding:
    """Return a finding for a check that could not be made."""
    return Finding(check=check, subject=subject, outcome=Outcome.UNCHECKED, detail=why)
