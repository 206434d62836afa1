"""Verify: every method of a bundle against a reference, every file against what it claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.references import read_adapters
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.store import open_bundle
from lora_core.errors import LoraCoreError, Problem, UnsupportedError, UsageError
from lora_core.events import Emit, stage
from lora_core.models.base import ModelHandle, ModelOptions
from lora_core.pipeline.given import adapter_formats, adapter_references, open_model
from lora_core.sharing.blobs import Blob
from lora_core.suggestions import did_you_mean
from lora_core.verification import files, stored
from lora_core.verification.finding import Finding, State, found, unchecked
from lora_core.verification.limits import Limits, limits_for
from lora_core.verification.measuring import Bench, Measured, MethodNumbers
from lora_core.verification.prompts import make_prompts
from lora_core.verification.reference import Kind, make_reference

if TYPE_CHECKING:
    from lora_core.backend import Backend
    from lora_core.hub import PluginHub

_TOKENS = 16
DAMAGED = ("hashes", "foundation")
"""Checks whose failure means that nothing is executed: a runtime may crash on a damaged program."""


@attrs.frozen(kw_only=True)
class VerifySettings:
    """How numbers are compared: `tokens` steps (None: 16, or half of a shorter context) after each of `prompts`
    (default: the core's own), with `reference`; `session` are options of the backend's session.
    """

    prompts: tuple[str, ...] = ()
    tokens: int | None = None
    reference: Kind = "auto"
    session: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class VerifyReport:
    """What was checked, and the numbers behind it.

    `reference` says what the numbers were compared with, `facts` what the session says of its runtime; both are empty
    if nothing was run. `settings` are those of the comparison.
    """

    bundle: Bundle
    limits: Limits
    reference: str
    facts: Mapping[str, Any]
    settings: VerifySettings
    methods: tuple[MethodNumbers, ...]
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """True if no check failed; `unchecked` tells what could not be checked."""
        return not self.failures

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The checks that failed."""
        return tuple(each for each in self.findings if each.state is State.FAILED)

    @property
    def unchecked(self) -> tuple[Finding, ...]:
        """The checks that could not be made."""
        return tuple(each for each in self.findings if each.state is State.UNCHECKED)

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


def verify(
    path: Path,
    model: str | Path | ModelHandle,
    *,
    adapters: Mapping[str, str | Path] | Sequence[AdapterReference],
    settings: VerifySettings,
    emit: Emit,
    hub: PluginHub,
) -> VerifyReport:
    """Check the bundle at `path`; `lora_core.verify` documents arguments and errors."""
    bundle = open_bundle(path, emit)
    backend = hub.backend(bundle.manifest.backend)
    spec = hub.backends[bundle.manifest.backend]
    handle = open_model(model, hub, download=False)
    references = adapter_references(adapters)
    _refuse_strangers(bundle, references)
    read = {each.name: each for each in read_adapters(references, handle.summary, adapter_formats(hub))}
    given = {name: adapter for name, adapter in read.items() if name in _names(bundle)}
    limits = limits_for(bundle.manifest.policy, spec.limits)
    with stage(emit, "Check the files"):
        findings = _check_files(bundle, backend, handle, given)
    report = VerifyReport(
        bundle=bundle, limits=limits, reference="", facts={}, settings=settings, methods=(), findings=tuple(findings)
    )
    damaged = [each for each in findings if each.state is State.FAILED and each.check in (*DAMAGED, "model")]
    if damaged:
        why = f"not run, because the check of {damaged[0].check} failed"
        return attrs.evolve(report, findings=(*findings, *_none_ran(bundle, why)))
    try:
        session = backend.open(bundle, settings.session)
    except UnsupportedError as error:
        return attrs.evolve(report, findings=(*findings, *_none_ran(bundle, str(error))))
    except UsageError:
        raise
    except LoraCoreError as error:
        return attrs.evolve(report, findings=(*findings, found("runs", "bundle", [str(error)])))
    with session:
        measured, reference = _measure(session, handle, references, given, limits, settings, emit)
        facts = dict(session.facts)
    return attrs.evolve(
        report,
        reference=reference,
        facts=facts,
        methods=measured.methods,
        findings=(*findings, *measured.findings),
    )


def _check_files(bundle: Bundle, backend: Backend, handle: ModelHandle, given: Mapping[str, Adapter]) -> list[Finding]:
    findings = [
        files.hashes(bundle),
        files.foundation(bundle, backend.sharing.fingerprint(bundle)),
        files.same_model(bundle, handle.summary),
    ]
    damaged = any(each.state is State.FAILED for each in findings)
    try:
        blobs: list[Blob] = list(backend.sharing.blobs(bundle))
    except LoraCoreError as error:
        return [*findings, found("sharing", "bundle", [str(error)]), *files.digests(bundle, given)]
    findings += [files.sharing(bundle, blobs), *files.digests(bundle, given)]
    if backend.sharing.plain_weights and not damaged:
        findings.append(stored.base_precision(bundle, blobs, handle.load(ModelOptions(attention="sdpa"))))
        findings += [stored.adapter_precision(bundle, blobs, adapter) for adapter in given.values()]
    return findings


def _measure(
    session: Any,
    handle: ModelHandle,
    references: Sequence[AdapterReference],
    given: Mapping[str, Adapter],
    limits: Limits,
    settings: VerifySettings,
    emit: Emit,
) -> tuple[Measured, str]:
    from lora_core.runtime.run import context_len

    try:
        session.load(None)
    except LoraCoreError as error:
        finding = found("runs", "bundle", [str(error)])
        return Measured(methods=(), findings=(finding,)), ""
    length = context_len(session)
    tokens = min(_TOKENS, length // 2) if settings.tokens is None else settings.tokens
    prompts = make_prompts(session.bundle, settings.prompts, context_len=length, tokens=tokens)
    longest = max(map(len, prompts)) + tokens
    with stage(emit, "Load the reference"):
        reference = make_reference(settings.reference, handle, references, tuple(given.values()), length=longest)
    bench = Bench(
        session=session,
        reference=reference,
        prompts=prompts,
        tokens=tokens,
        limits=limits,
        adapters=dict(given),
        emit=emit,
    )
    return bench.measure(), reference.name


def _refuse_strangers(bundle: Bundle, references: Sequence[AdapterReference]) -> None:
    """Refuse references to adapters that the bundle does not have; parts of composites may be others."""
    parts = {part.of for reference in references for part in reference.parts}
    names = _names(bundle)
    problems = [
        Problem(what=f"The bundle has no adapter {each.name!r}", remedy=did_you_mean(each.name, names))
        for each in references
        if each.name not in names and each.name not in parts
    ]
    if problems:
        raise UsageError(problems)


def _names(bundle: Bundle) -> list[str]:
    return [adapter.name for adapter in bundle.manifest.adapters]


def _none_ran(bundle: Bundle, why: str) -> list[Finding]:
    return [unchecked("runs", method.name, why) for method in bundle.manifest.methods]
