"""What the conformance kit found."""

from __future__ import annotations

from enum import Enum
from typing import Any

import attrs


class Outcome(Enum):
    """How a check ended. `UNAVAILABLE`: this machine cannot show it; it says why, and it is not a pass."""

    PASSED = "passed"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"


@attrs.frozen(kw_only=True)
class Result:
    """One check: what was claimed, how it ended, and why if it did not hold."""

    name: str
    claim: str
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0


@attrs.frozen(kw_only=True)
class ConformanceReport:
    """All checks that ran against one backend."""

    backend: str
    distribution: str
    policies: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Result, ...]:
        """The checks that failed."""
        return tuple(result for result in self.results if result.outcome is Outcome.FAILED)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "backend": self.backend,
            "distribution": self.distribution,
            "policies": list(self.policies),
            "passed": self.passed,
            "results": [{**attrs.asdict(result), "outcome": result.outcome.value} for result in self.results],
        }
