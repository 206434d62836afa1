"""Add: adapters are linked into a bundle, without the base weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.adapters.names import name_problems
from lora_core.adapters.reference import AdapterReference
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.transaction import Change, change
from lora_core.capability import Capability
from lora_core.errors import BundleError, ModelError, Problem, UnsupportedError, UsageError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.pipeline.batches import BATCH, WORTH_A_PROCESS, BatchResult, LinkBatch, link_here, split
from lora_core.pipeline.complaints import Complaints
from lora_core.pipeline.given import adapter_formats, adapter_references, located, open_model
from lora_core.pipeline.recording import Changed, checked, updated
from lora_core.pipeline.soundness import blaming_damage, damage, rewritten_damage
from lora_core.specs import BackendSpec

if TYPE_CHECKING:
    from lora_core.hub import PluginHub
    from lora_core.models.base import ModelHandle

_STAGE = "Link"


def add(
    path: Path,
    adapters: Mapping[str, str | Path] | Sequence[AdapterReference],
    *,
    jobs: int,
    trust: Sequence[Path] = (),
    model: str | Path | ModelHandle | None = None,
    source: str | None = None,
    download: bool = False,
    emit: Emit,
    hub: PluginHub,
) -> Bundle:
    """Link adapters into the bundle at `path`; `lora_core.add` documents arguments and errors."""
    references = located(adapter_references(adapters), download=download)
    if not references:
        raise UsageError("There is no adapter to add.")
    if jobs < 1:
        raise UsageError(f"There must be at least one job, not {jobs}.")
    with change(path, emit) as changing:
        bundle = changing.bundle
        spec = hub.spec_of(bundle)
        backend = _linker(spec, hub)
        _check(bundle, spec, references)
        if trust or any(reference.package for reference in references):
            _refuse_packages(bundle, backend, references, trust)
        handle = None if model is None else base_of(bundle, model, source, hub)
        work = changing.out.parent / f"batches-{os.urandom(4).hex()}"
        work.mkdir()
        independent = backend.links_independently(bundle)
        batches = split(references, BATCH if independent else len(references), work)
        if not independent:
            batches = [LinkBatch(references=references, out=work / "batch-0")]
        # Weights of a base are read by whom they were opened: nothing of a model's source goes to another process.
        processes = 1 if handle is not None else min(jobs, len(batches), len(references) // WORTH_A_PROCESS)
        with stage(emit, _STAGE):
            if processes > 1:
                from lora_core.pipeline.workers import link_in_processes  # most calls link in this process

                results = link_in_processes(batches, bundle, hub, processes)
            else:
                results = link_here(batches, bundle, backend, spec, adapter_formats(hub, handle), emit)
            return _commit(changing, batches, results, emit)


def _refuse_packages(
    bundle: Bundle, backend: Backend, references: Sequence[AdapterReference], trust: Sequence[Path]
) -> None:
    from lora_core.adapters.packages.seal import Trust  # most calls have no packages
    from lora_core.pipeline.packing import refuse_packages

    refuse_packages(bundle, backend, references, Trust.read(trust) if trust else None)


def base_of(bundle: Bundle, model: str | Path | ModelHandle, source: str | None, hub: PluginHub) -> ModelHandle:
    """Open `model`, which must have the layers and weights of the bundle's base; raises `ModelError`."""
    from lora_core.models.weights_digest import weights_digest  # most calls need no base
    from lora_core.verification.files import same_model

    handle = open_model(model, hub, download=False, source=source)
    finding = same_model(bundle, handle.summary, weights_digest(handle.tensors()))
    if finding.failed:
        raise ModelError(
            f"This is not the model that the bundle was exported from: {finding.detail}",
            where=str(model) if isinstance(model, str | Path) else handle.summary.name,
            remedy="Give the very base of the export: a fine-tune of the same shape has other weights.",
        )
    return handle


def _linker(spec: BackendSpec, hub: PluginHub) -> Backend:
    """Return the backend of `spec`, if it can link."""
    if Capability.LINK not in spec.capabilities:
        raise UnsupportedError(
            f"Backend {spec.name!r} cannot add adapters to a bundle.", remedy="Export again with all adapters."
        )
    return hub.backend(spec.name, check_requirements=False)


def _check(bundle: Bundle, spec: BackendSpec, references: Sequence[AdapterReference]) -> None:
    """Refuse names in use, a bundle without a template, and files that are not those of the manifest."""
    complaints = Complaints()
    complaints.add(BundleError, list(damage(bundle)))
    if spec.slot_plans and not bundle.manifest.plans:
        what = "The bundle has no template: it was exported without adapters and without room for any"
        remedy = "Export again with --max-rank and --targets, for instance --max-rank 16 --targets all-linear."
        complaints.add(BundleError, [Problem(what=what, where=str(bundle.path), remedy=remedy)])
    names = [each.name for each in references]
    found = [bundle.manifest.records.find(name, like=True) for name in names]
    taken = [record.name for record in found if record is not None]
    complaints.add(UsageError, name_problems(names, taken=taken, reserved=spec.reserved))
    complaints.raise_any()


def _commit(changing: Change, batches: Sequence[LinkBatch], results: Iterator[BatchResult], emit: Emit) -> Bundle:
    """Collect the results of all batches into one change; raise the problems of all of them together."""
    complaints = Complaints()
    manifest = changing.bundle.manifest
    changes: list[Changed] = []
    done, total = 0, sum(len(batch.references) for batch in batches)
    for batch, result in zip(batches, results, strict=True):
        for event in result.events:
            emit(event)
        with complaints.collect(), blaming_damage(changing.bundle):
            if result.changed is None:
                raise result.error or AssertionError("a batch gives changes or an error")
            manifest = updated(manifest, result.changed)
            changes.append(result.changed)
            _move(batch.out, changing.out)
        done += len(batch.references)
        emit(StageAdvanced(stage=_STAGE, done=done, total=total))
    rewritten = [artifact for change in changes for artifact in change.artifacts]
    complaints.add(BundleError, list(rewritten_damage(changing.bundle, rewritten)))
    complaints.raise_any()
    shutil.rmtree(batches[0].out.parent)
    return changing.commit(checked(manifest))


def _move(source: Path, target: Path) -> None:
    """Move the files below `source` to the same places below `target`."""
    for found in sorted(source.rglob("*")):
        if not found.is_dir():
            moved = target / found.relative_to(source)
            moved.parent.mkdir(parents=True, exist_ok=True)
            found.rename(moved)
