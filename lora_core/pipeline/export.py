"""Export: a model and its adapters become a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.identity import other_base
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.slots.choice import PlacedAdapter, place, place_alone
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, Backend, ExportJob, WrittenFile
from lora_core.bundle.bundle import Bundle, Manifest
from lora_core.bundle.creation import creation, refusal
from lora_core.bundle.durable import storage_errors
from lora_core.errors import BundleError, PolicyError, UnsupportedError, UsageError
from lora_core.events import Emit, Estimated, Noted, Warned, stage
from lora_core.layers import ModelSummary
from lora_core.models.base import TokenizerFiles
from lora_core.pipeline.complaints import Complaints
from lora_core.pipeline.given import adapter_formats, adapter_references, open_model
from lora_core.pipeline.recording import blame, bundled, checked, plain_options, recorded, unlinked
from lora_core.pipeline.request import ExportRequest
from lora_core.pipeline.slotting import describe, make_plans
from lora_core.quant.policies import parse_policy
from lora_core.quant.policy import QuantPolicy
from lora_core.specs import BackendSpec
from lora_core.suggestions import did_you_mean
from lora_core.units import size

if TYPE_CHECKING:
    from lora_core.hub import PluginHub


CHECK_STAGE = "Check"
"""The stage that ends when neither the core nor the backend has anything against the request."""


def export(request: ExportRequest, out: Path, *, force: bool, emit: Emit, hub: PluginHub) -> Bundle:
    """Write a bundle; `lora_core.export` documents arguments and errors."""
    complaints = Complaints()
    refused = refusal(out.resolve(), force=force)
    complaints.add(BundleError, refused.problems if refused is not None else ())
    with stage(emit, CHECK_STAGE):
        job, maker = _prepare(request, hub, complaints)
    _announce(job, emit)
    _estimate(maker.estimate(job), out, emit)
    with creation(out, emit, force=force) as made:
        artifacts = maker.export(job, made.out, emit)
        blame(request.backend, unlinked(artifacts, job.adapters))
        with stage(emit, "Write the bundle"):
            return made.commit(_manifest(request.backend, job, artifacts, made.out))


def _prepare(request: ExportRequest, hub: PluginHub, complaints: Complaints) -> tuple[ExportJob, Backend]:
    """Return the job and its backend, or raise every problem of the request together."""
    backend, handle, policy, options, placed = None, None, None, None, None
    spec = hub.backends.find(request.backend)
    with complaints.collect():
        backend = hub.backend(request.backend)
    with complaints.collect():
        policy = _policy(request, spec, hub)
    with complaints.collect():
        options = hub.options(request.backend, request.options)
    with complaints.collect():
        handle = open_model(request.model, hub, download=request.download)
    if handle is not None:
        with complaints.collect():
            placed = _placed(request, handle.summary, spec, hub)
    if backend is None or handle is None or policy is None or options is None or placed is None:
        complaints.raise_any()
        raise AssertionError("what is missing has been complained of")
    plans, adapters = placed
    job = ExportJob(model=handle, adapters=adapters, plans=plans, policy=policy, options=options, cache=request.cache)
    complaints.add(UnsupportedError, backend.check(job))
    complaints.raise_any()
    return job, backend


def _placed(
    request: ExportRequest, base: ModelSummary, spec: BackendSpec | None, hub: PluginHub
) -> tuple[tuple[SlotPlan, ...], tuple[PlacedAdapter, ...]]:
    """Return the slot plans of the request, and its adapters in the order of their names, each on its plan."""
    reserved = spec.reserved if spec is not None else None
    references = adapter_references(request.adapters, reserved)
    read = read_adapters(references, base, adapter_formats(hub), reserved=reserved)
    adapters = sorted(read, key=lambda adapter: adapter.name)
    if spec is not None and not spec.slot_plans:
        if request.max_rank is not None or request.targets is not None:
            raise UsageError(
                f"Backend {spec.name!r} stores adapters as they are, so there is no room to reserve.",
                remedy="Leave --max-rank and --targets out: any adapter can be added later.",
            )
        return (), place_alone(adapters, base.layers)
    plans = make_plans(request.plan, adapters, base.layers, max_rank=request.max_rank, targets=request.targets)
    return plans, place(adapters, plans)


def _policy(request: ExportRequest, spec: BackendSpec | None, hub: PluginHub) -> QuantPolicy:
    if isinstance(request.policy, QuantPolicy):
        policy = request.policy
    else:
        first = spec.policies[0] if spec is not None and spec.policies else "fp32"
        name = request.policy if request.policy is not None else first
        policy = parse_policy(name, hub.policies, group_size=request.group_size, embedding=request.embedding)
        if spec is not None and policy.name not in spec.policies:
            raise PolicyError(
                f"Backend {spec.name!r} cannot do policy {policy.name!r}.",
                remedy=did_you_mean(policy.name, spec.policies),
            )
    if spec is not None and policy.embedding is not None and not spec.embeddings:
        raise PolicyError(
            f"Backend {spec.name!r} cannot quantize embeddings, and policy {policy.name!r} asks for it.",
            remedy="Leave --embedding out.",
        )
    return policy


def _announce(job: ExportJob, emit: Emit) -> None:
    for message in describe(job.plans, job.adapters):
        emit(Noted(message=message))
    for placed in job.adapters:
        contradiction = other_base(placed.adapter, job.model.summary)
        if contradiction is not None:
            emit(Warned(message=contradiction))


def _estimate(estimated: Estimated | None, out: Path, emit: Emit) -> None:
    """Tell what the export will take, and warn if the disk has no room for it."""
    if estimated is None:
        return
    emit(estimated)
    directory = next(each for each in out.resolve().parents if each.is_dir())
    with storage_errors("look at", directory):
        free = shutil.disk_usage(directory).free
    if free < estimated.written:
        emit(Warned(message=f"About {size(estimated.written)} will be written, and {directory} has {size(free)} free."))


def _manifest(name: str, job: ExportJob, written: Artifacts, out: Path) -> Manifest:
    from lora_core.version import __version__

    tokenizer = _copy_tokenizer(job.model.tokenizer, out)
    return checked(
        Manifest(
            backend=name,
            base=job.model.summary,
            policy=attrs.asdict(job.policy),
            foundation=written.foundation,
            plans=job.plans,
            options=plain_options(job.options),
            versions={**written.versions, "lora-core": __version__},
            artifacts=recorded((*written.files, *tokenizer), out, name),
            adapters=bundled(job.adapters, written),
            methods=written.methods,
            detail=written.detail,
        )
    )


def _copy_tokenizer(tokenizer: TokenizerFiles | None, out: Path) -> Iterator[WrittenFile]:
    for file in tokenizer.files if tokenizer is not None else ():
        copy = out / "tokenizer" / file.name
        with storage_errors("copy", file):
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        yield WrittenFile(path=f"tokenizer/{file.name}", role="tokenizer")
