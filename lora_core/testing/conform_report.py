"""What the conformance kit found."""

from __future__ import annotations

from typing import Any

import attrs

from lora_core.outcome import Outcome


@attrs.frozen(kw_only=True)
class Result:
    """One check: what was claimed, how it ended, and why if it did not hold.

    `gap` is the reason why the caller lists the check as a known gap, if it does: such a result stands in nobody's way.
    """

    id: str
    claim: str
    outcome: Outcome
    detail: str = ""
    gap: str = ""
    seconds: float = 0.0

    @property
    def stands(self) -> bool:
        """True if the claim holds, or is known not to."""
        return self.outcome is Outcome.PASSED or bool(self.gap)


@attrs.frozen(kw_only=True)
class ConformanceReport:
    """All checks that ran against one backend."""

    backend: str
    distribution: str
    policies: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """True if every check ran and held, known gaps apart. A check that could not be made is no pass."""
        return all(result.stands for result in self.results)

    @property
    def failures(self) -> tuple[Result, ...]:
        """The checks that failed, known gaps apart."""
        return tuple(each for each in self.results if each.outcome is Outcome.FAILED and not each.stands)

    @property
    def unchecked(self) -> tuple[Result, ...]:
        """The checks that this machine cannot make, known gaps apart."""
        return tuple(each for each in self.results if each.outcome is Outcome.UNCHECKED and not each.stands)

    def __str__(self) -> str:
        """Say what does not hold, a line for each check: what an assertion shows."""
        lines = [f"{each.id}: {each.outcome.value}: {each.detail}" for each in self.results if not each.stands]
        return "\n".join((f"{self.backend} {'conforms' if self.passed else 'does not conform'}", *lines))

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "backend": self.backend,
            "distribution": self.distribution,
            "policies": list(self.policies),
            "passed": self.passed,
            "results": [{**attrs.asdict(result), "outcome": result.outcome.value} for result in self.results],
        }
