"""Run the conformance kit against one backend."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import LoraCoreError, Problem, UsageError
from lora_core.events import Emit, ignore, stage
from lora_core.hub import PluginHub
from lora_core.suggestions import did_you_mean
from lora_core.testing import export_checks, link_checks, run_checks
from lora_core.testing.check import Broken, Check, Unavailable
from lora_core.testing.conform_report import ConformanceReport, Outcome, Result
from lora_core.testing.workshop import Workshop

CHECKS: tuple[Check, ...] = (*export_checks.CHECKS, *link_checks.CHECKS, *run_checks.CHECKS)

SMALL = {"max_context_len": 32, "context_len": 32, "max_seq_len": 16, "input_len": 8}


def conform(
    backend: str,
    *,
    hub: PluginHub | None = None,
    policies: Sequence[str] | None = None,
    checks: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    emit: Emit = ignore,
) -> ConformanceReport:
    """Run every check that applies to `backend`, with a tiny random model in a temporary directory.

    `policies` (default: all that the backend declares) are what the checks go through; `checks` (default: all) the
    names of those to run; `options` the backend's own export options by name. Raises `UsageError` for unknown names
    and `PluginError` for a backend that cannot be imported; what a check meets is in the report, never raised.
    """
    hub = hub or PluginHub()
    spec = hub.backends.entry(backend)
    hub.backend(backend)
    offered = spec.value.policies or ("fp32",)
    _expect_known("policy", policies, offered)
    _expect_known("check", checks, [check.name for check in CHECKS])
    with tempfile.TemporaryDirectory(prefix="lora-core-conform-") as root:
        workshop = Workshop(
            backend_name=backend,
            hub=hub,
            root=Path(root),
            policies=tuple(policies or offered),
            options={**_small(hub, backend), **(options or {})},
            emit=emit,
        )
        chosen = [check for check in CHECKS if (not checks or check.name in checks) and check.applies(workshop)]
        results = []
        for check in chosen:
            with stage(emit, f"Check {check.name!r}"):
                results.append(_result(check, workshop))
    return ConformanceReport(
        backend=backend, distribution=spec.origin.distribution, policies=workshop.policies, results=tuple(results)
    )


def _result(check: Check, workshop: Workshop) -> Result:
    start = time.monotonic()
    outcome, detail = _outcome(check, workshop)
    seconds = time.monotonic() - start
    return Result(name=check.name, claim=check.claim, outcome=outcome, detail=detail, seconds=seconds)


def _outcome(check: Check, workshop: Workshop) -> tuple[Outcome, str]:
    try:
        check.run(workshop)
    except Broken as finding:
        return Outcome.FAILED, str(finding)
    except Unavailable as reason:
        return Outcome.UNAVAILABLE, str(reason)
    except LoraCoreError as error:
        return Outcome.FAILED, f"{type(error).__name__}: {error}"
    except Exception as error:  # noqa: BLE001 the finding: a backend let something foreign out
        return Outcome.FAILED, f"Something other than a LoraCoreError was raised: {type(error).__name__}: {error}"
    return Outcome.PASSED, ""


def _small(hub: PluginHub, backend: str) -> dict[str, int]:
    """Return the usual options that make an export small, as far as `backend` has them."""
    fields = {field.name for field in attrs.fields(hub.backend_options(backend))}
    return {name: value for name, value in SMALL.items() if name in fields}


def _expect_known(kind: str, names: Sequence[str] | None, choices: Sequence[str]) -> None:
    unknown = [name for name in names or () if name not in choices]
    if unknown:
        raise UsageError(
            Problem(what=f"There is no {kind} {name!r}", remedy=did_you_mean(name, choices)) for name in unknown
        )
