"""What one check found."""

from __future__ import annotations

from enum import Enum
from typing import Any

import attrs

_SHOWN = 6


class State(Enum):
    """How a check ended. `UNCHECKED`: it could not be made, its detail says why; that is no pass."""

    PASSED = "passed"
    FAILED = "failed"
    UNCHECKED = "unchecked"


@attrs.frozen(kw_only=True)
class Finding:
    """One check of one subject: a method's name, an adapter's, or `bundle`."""

    check: str
    subject: str
    state: State
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**attrs.asdict(self), "state": self.state.value}


def found(check: str, subject: str, problems: list[str], *, held: str = "") -> Finding:
    """Return a failed finding with the first of `problems`, or a passed one that says what `held`."""
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        return Finding(check=check, subject=subject, state=State.FAILED, detail="; ".join(problems[:_SHOWN] + more))
    return Finding(check=check, subject=subject, state=State.PASSED, detail=held)


def unchecked(check: str, subject: str, why: str) -> Finding:
    """Return a finding for a check that could not be made."""
    return Finding(check=check, subject=subject, state=State.UNCHECKED, detail=why)
