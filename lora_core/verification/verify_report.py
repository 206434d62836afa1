"""What `verify` was asked, and what it found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from lora_core.bundle.bundle import Bundle
from lora_core.limits import Limits
from lora_core.outcome import Outcome
from lora_core.runtime.given_inputs import Inputs
from lora_core.verification.choosing import ReferenceChoice
from lora_core.verification.finding import Finding
from lora_core.verification.measuring import MethodNumbers


@attrs.frozen(kw_only=True)
class VerifySettings:
    """How numbers are compared: `tokens` steps (None: 16, or half of a shorter context) after each of `prompts`
    (default: the core's own), with `reference`; `session` are options of the backend's session. `inputs`, for a module
    that takes no tokens, are those of each call that is compared with the module itself.
    """

    prompts: tuple[str, ...] = ()
    tokens: int | None = None
    reference: ReferenceChoice = "auto"
    inputs: Inputs = ()
    session: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class VerifyReport:
    """What was checked, and the numbers behind it.

    `reference` says what the numbers were compared with, `facts` what the session says of its runtime; both are empty
    if nothing was run. `settings` are those of the comparison.
    """

    bundle: Bundle
    limits: Limits
    settings: VerifySettings
    findings: tuple[Finding, ...]
    reference: str = ""
    facts: Mapping[str, Any] = attrs.field(factory=dict)
    methods: tuple[MethodNumbers, ...] = ()

    def with_findings(self, more: Iterable[Finding]) -> VerifyReport:
        """Return this report with `more` findings."""
        return attrs.evolve(self, findings=(*self.findings, *more))

    @property
    def passed(self) -> bool:
        """True if no check failed; `unchecked` tells what could not be checked."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(each for each in self.findings if each.failed)

    @property
    def unchecked(self) -> tuple[Finding, ...]:
        """The checks that could not be made."""
        return tuple(each for each in self.findings if each.outcome is Outcome.UNCHECKED)

    @property
    def ran(self) -> bool:
        """True if the numbers of at least one method were compared."""
        return any(each.numbers is not None for each in self.methods)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        manifest = self.bundle.manifest
        return {
            "path": str(self.bundle.path),
            "backend": manifest.backend,
            "base": manifest.base.name,
            "policy": manifest.policy.get("name"),
            "passed": self.passed,
            "reference": self.reference,
            "facts": dict(self.facts),
            "limits": attrs.asdict(self.limits),
            "methods": [
                {
                    "method": each.method,
                    "adapter": each.adapter,
                    "numbers": each.numbers.to_json() if each.numbers is not None else None,
                    "effect": each.effect.to_json() if each.effect is not None else None,
                }
                for each in self.methods
            ],
            "findings": [finding.to_json() for finding in self.findings],
        }
