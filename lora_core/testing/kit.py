"""The conformance kit at work on one backend: checks run one by one and share what they make."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attrs

from lora_core.errors import LoraCoreError, UsageError
from lora_core.events import Emit, ignore, stage
from lora_core.hub import PluginHub
from lora_core.outcome import Outcome
from lora_core.testing.catalogue import CHECKS, check_ids, expect_known
from lora_core.testing.check import Check
from lora_core.testing.conform_report import ConformanceReport, Result
from lora_core.testing.materials import CONTEXT_LEN, Materials
from lora_core.testing.verdict import Broken, Unchecked
from lora_core.testing.workshop import Workshop

SMALL = {"max_context_len": CONTEXT_LEN, "context_len": CONTEXT_LEN, "max_seq_len": 16, "input_len": 8}
"""Options of usual names that make an export small, and what the kit asks for."""


class Kit:
    """Checks of one backend, with a tiny random model in a temporary directory that goes away with `close`."""

    def __init__(
        self,
        backend: str,
        *,
        hub: PluginHub | None = None,
        policies: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
        known_gaps: Mapping[str, str] | None = None,
        materials: Materials | None = None,
        cache: bool = False,
        emit: Emit = ignore,
    ) -> None:
        """Prepare for `backend`; `lora_core.testing.conformance.conform` documents arguments and errors.

        `materials` are what kits for several backends can share.
        """
        hub = hub or PluginHub()
        spec = hub.backends.entry(backend)
        hub.backend(backend)
        offered = spec.value.policies or ("fp32",)
        expect_known("policy", policies or (), offered)
        self.distribution = spec.origin.distribution
        self._gaps = dict(known_gaps or {})
        self._stack = ExitStack()
        root = Path(self._stack.enter_context(TemporaryDirectory(prefix="lora-core-conform-")))
        self._workshop = Workshop(
            backend_name=backend,
            hub=hub,
            root=root / "work",
            materials=materials or Materials(root=root / "given"),
            policies=tuple(policies or offered),
            options={**_small(hub, backend), **(options or {})},
            cache=root / "cache" if cache else None,
            emit=emit,
        )
        try:
            self._check_gaps()
        except UsageError:
            self.close()
            raise

    @property
    def checks(self) -> tuple[Check, ...]:
        """The checks that apply to what the backend declares."""
        return tuple(check for check in CHECKS if check.applies(self._workshop))

    def run(self, check: Check) -> Result:
        """Run one check. Whatever it meets is in the result, never raised."""
        start = time.monotonic()
        with stage(self._workshop.emit, f"Check {check.id}"):
            outcome, detail = _outcome(check, self._workshop)
        gap = self._gaps.get(check.id, "")
        if gap and outcome is Outcome.PASSED:
            outcome, detail, gap = Outcome.FAILED, f"It holds, and is listed as a known gap ({gap}): take it off.", ""
        seconds = time.monotonic() - start
        return Result(id=check.id, claim=check.claim, outcome=outcome, detail=detail, gap=gap, seconds=seconds)

    def report(self, results: Sequence[Result]) -> ConformanceReport:
        """Return `results` with what they are about."""
        return ConformanceReport(
            backend=self._workshop.backend_name,
            distribution=self.distribution,
            policies=self._workshop.policies,
            results=tuple(results),
        )

    def close(self) -> None:
        """Remove everything that was made."""
        self._stack.close()

    def __enter__(self) -> Kit:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check_gaps(self) -> None:
        expect_known("check", tuple(self._gaps), check_ids())
        expect_known(f"check of {self._workshop.backend_name}", tuple(self._gaps), [each.id for each in self.checks])
        unexplained = [name for name, reason in self._gaps.items() if not reason.strip()]
        if unexplained:
            raise UsageError(f"A known gap needs a reason: {', '.join(unexplained)}.", remedy="Write ID=REASON.")


def _outcome(check: Check, workshop: Workshop) -> tuple[Outcome, str]:
    try:
        check.run(workshop)
    except Broken as finding:
        return Outcome.FAILED, str(finding)
    except Unchecked as reason:
        return Outcome.UNCHECKED, str(reason)
    except LoraCoreError as error:
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 the finding: a backend let something foreign out
        return Outcome.FAILED, f"Something other than a LoraCoreError was raised: {type(error).__name__}: {error}"
    return Outcome.PASSED, ""


def _small(hub: PluginHub, backend: str) -> dict[str, int]:
    """Return the usual options that make an export small, as far as `backend` has them."""
    fields = {field.name for field in attrs.fields(hub.backend_options(backend))}
    return {name: value for name, value in SMALL.items() if name in fields}
