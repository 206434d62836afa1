"""Every check of the conformance kit, in the order in which they run: what costs nothing first."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.errors import Problem, UsageError
from lora_core.suggestions import did_you_mean
from lora_core.testing.check import Check
from lora_core.testing.checks import computing, damage, exporting, linking, selecting, sessions, storing

CHECKS: tuple[Check, ...] = (
    *exporting.CHECKS,
    *storing.CHECKS,
    *linking.CHECKS,
    *damage.CHECKS,
    *computing.CHECKS,
    *selecting.CHECKS,
    *sessions.CHECKS,
)


def check_ids() -> tuple[str, ...]:
    """Return the ids of all checks."""
    return tuple(check.id for check in CHECKS)


def expect_known(kind: str, names: Sequence[str], choices: Sequence[str]) -> None:
    """Raise `UsageError` with every one of `names` that is not among `choices`."""
    unknown = [name for name in names if name not in choices]
    if unknown:
        raise UsageError(
            Problem(what=f"There is no {kind} {name!r}", remedy=did_you_mean(name, choices)) for name in unknown
        )
