"""Verify: every method of a bundle against a reference, every file against what it claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.store import open_bundle
from lora_core.errors import BundleError, LoraCoreError, Problem, UnsupportedError, UsageError
from lora_core.events import Emit, stage
from lora_core.limits import limits_for
from lora_core.models.base import ModelHandle
from lora_core.models.text.stored import files_in
from lora_core.models.weights_digest import weights_digest
from lora_core.pipeline.as_trained import as_trained
from lora_core.pipeline.given import adapter_formats, adapter_references, located, open_model
from lora_core.pipeline.peft_forms import PeftForms
from lora_core.quant.policy import HALF
from lora_core.runtime.run import context_len
from lora_core.runtime.tokenizer import has_tokenizer
from lora_core.sharing.blobs import Blob
from lora_core.suggestions import did_you_mean
from lora_core.temporary import temporary_directory
from lora_core.verification import files, stored
from lora_core.verification.choosing import make_reference
from lora_core.verification.finding import Finding, found, unchecked
from lora_core.verification.given_inputs import bench_of_inputs
from lora_core.verification.measuring import Bench
from lora_core.verification.prompts import make_prompts
from lora_core.verification.tokens import compare_tokens
from lora_core.verification.verify_report import VerifyReport, VerifySettings

if TYPE_CHECKING:
    from lora_core.backend import Backend
    from lora_core.hub import PluginHub
    from lora_core.runtime.session import Session

__all__ = ["VerifyReport", "VerifySettings", "verify"]

_TOKENS = 16
UNSAFE = ("hashes", "foundation", "model")
"""Checks whose failure means that nothing is executed: a runtime may crash on a damaged program."""


def verify(
    path: Path,
    model: str | Path | ModelHandle,
    *,
    adapters: Mapping[str, str | Path] | Sequence[AdapterReference],
    settings: VerifySettings,
    source: str | None = None,
    emit: Emit,
    hub: PluginHub,
) -> VerifyReport:
    """Check the bundle at `path`; `lora_core.verify` documents arguments and errors."""
    bundle = open_bundle(path, emit)
    spec = hub.spec_of(bundle)
    backend = hub.backend(spec.name)
    handle = open_model(model, hub, download=False, source=source)
    references = located(adapter_references(adapters))
    _refuse_strangers(bundle, references)
    formats = adapter_formats(hub, handle)
    read = read_adapters(references, handle.summary, formats)
    given = {adapter.name: adapter for adapter in read if adapter.name in _names(bundle)}
    trained = as_trained(references, read)
    fitted = frozenset(each.name for each, was in zip(references, trained, strict=True) if each != was)
    wanted = given
    if fitted:
        wanted = {each.name: each for each in read_adapters(trained, handle.summary, formats) if each.name in given}
    told = hub.session_options(spec.name, settings.session)
    limits = limits_for(bundle.manifest.policy, spec.limits, bundle.manifest.options, spec.option_limits)
    with stage(emit, "Check the files"):
        findings = tuple(_check_files(bundle, backend, handle, given))
    with stage(emit, "Compare the tokens"):
        findings += tuple(_check_tokens(bundle, handle, references, settings))
    report = VerifyReport(bundle=bundle, limits=limits, settings=settings, findings=findings)
    damaged = [each.check for each in report.failures if each.check in UNSAFE]
    if damaged:
        return report.with_findings(_none_ran(bundle, f"not run, because the check of {damaged[0]} failed"))
    try:
        session = backend.open(bundle, told)
    except UnsupportedError as error:
        return report.with_findings(_none_ran(bundle, str(error)))
    except BundleError as error:
        return report.with_findings([found("runs", "bundle", [str(error)])])
    with session, temporary_directory("verify") as scratch:
        forms = PeftForms(base=handle.summary, formats=formats, scratch=scratch)
        comparable = trained if settings.reference == "eager" else forms.of(trained)
        return _measure(report, session, handle, comparable, wanted, fitted, emit)


def _check_files(bundle: Bundle, backend: Backend, handle: ModelHandle, given: Mapping[str, Adapter]) -> list[Finding]:
    findings = [
        files.hashes(bundle),
        files.foundation(bundle, backend.sharing.fingerprint(bundle)),
        files.same_model(bundle, handle.summary, weights_digest(handle.tensors())),
    ]
    damaged = any(each.failed for each in findings)
    try:
        blobs: list[Blob] = list(backend.sharing.blobs(bundle))
        shared = files.sharing(bundle, blobs, backend.sharing.parts(bundle))
    except LoraCoreError as error:
        return [*findings, found("sharing", "bundle", [str(error)]), *files.digests(bundle, given)]
    findings += [shared, *files.digests(bundle, given)]
    return [*findings, *_check_precision(bundle, backend, blobs, handle, given, damaged=damaged)]


def _check_tokens(
    bundle: Bundle, handle: ModelHandle, references: Sequence[AdapterReference], settings: VerifySettings
) -> list[Finding]:
    if settings.reference == "eager":
        return []
    known = _names(bundle)
    directories = {
        each.name: each.directory
        for each in references
        if each.name in known and each.directory is not None and files_in(each.directory)
    }
    return compare_tokens(bundle, handle.reference_text, directories, settings.prompts)


def _check_precision(
    bundle: Bundle,
    backend: Backend,
    blobs: Sequence[Blob],
    handle: ModelHandle,
    given: Mapping[str, Adapter],
    *,
    damaged: bool,
) -> list[Finding]:
    if damaged:
        return []
    if not backend.sharing.plain_weights:
        why = f"backend {bundle.manifest.backend!r} stores weights in a form of its own"
        return [unchecked("precision", subject, why) for subject in ("bundle", *given)]
    base = stored.base_precision(bundle, blobs, handle)
    lora = stored.recorded_policy(bundle.manifest.policy).lora
    if lora not in (None, HALF):
        why = f"adapters are stored with {lora.bits} bits; what that loses the numbers tell"
        return [base, *(unchecked("precision", name, why) for name in given)]
    return [base, *(stored.adapter_precision(bundle, blobs, adapter) for adapter in given.values())]


def _measure(
    report: VerifyReport,
    session: Session,
    handle: ModelHandle,
    references: Sequence[AdapterReference],
    given: Mapping[str, Adapter],
    fitted: frozenset[str],
    emit: Emit,
) -> VerifyReport:
    """Return `report` with the numbers of every method."""
    try:
        session.load(None)
    except LoraCoreError as error:
        return report.with_findings([found("runs", "bundle", [str(error)])])
    settings, read = report.settings, tuple(given.values())
    inputs = settings.inputs or handle.sample_calls()
    if inputs:
        return _measured(report, bench_of_inputs(session, handle, read, inputs, report.limits, emit))
    if session.bundle.manifest.base.vocab_size is None and not has_tokenizer(session.bundle):
        why = "not run: how many tokens the model takes is not known (from Python, inputs=[...] are calls to compare)"
        return report.with_findings(_none_ran(session.bundle, why))
    length = context_len(session)
    tokens = min(_TOKENS, length // 2) if settings.tokens is None else settings.tokens
    prompts = make_prompts(session.bundle, settings.prompts, context_len=length, tokens=tokens)
    longest = max(map(len, prompts)) + tokens
    with stage(emit, "Load the reference"):
        try:
            reference = make_reference(settings.reference, handle, references, read, length=longest, emit=emit)
        except UnsupportedError as error:
            if settings.reference != "auto":
                raise
            return report.with_findings(_none_ran(session.bundle, str(error)))
    bench = Bench(
        session=session,
        reference=reference,
        prompts=prompts,
        tokens=tokens,
        limits=report.limits,
        adapters=dict(given),
        emit=emit,
        fitted=fitted,
    )
    return _measured(report, bench)


def _measured(report: VerifyReport, bench: Bench) -> VerifyReport:
    measured = bench.measure()
    facts, reference = dict(bench.session.facts), bench.reference.name
    complete = attrs.evolve(report, limits=bench.limits, reference=reference, facts=facts, methods=measured.methods)
    return complete.with_findings(measured.findings)


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
