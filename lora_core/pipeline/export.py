"""Export: a model and its adapters become a bundle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.identity import other_base, refuse_fitted_elsewhere
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.slots.choice import PlacedAdapter, place, place_alone
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, Backend, ExportJob
from lora_core.bundle.bundle import Bundle, Manifest
from lora_core.bundle.creation import creation, refusal
from lora_core.bundle.durable import storage_errors
from lora_core.errors import BundleError, PolicyError, UnsupportedError, UsageError
from lora_core.events import Emit, Estimated, Event, Noted, Warned, stage
from lora_core.models.base import ModelHandle
from lora_core.models.weights_digest import weights_digest
from lora_core.pipeline.adapter_dtypes import adapter_scheme
from lora_core.pipeline.adapter_texts import AdapterTextReader, AdapterTexts
from lora_core.pipeline.complaints import Complaints
from lora_core.pipeline.given import adapter_formats, adapter_references, located, open_model
from lora_core.pipeline.inert import inert
from lora_core.pipeline.kinds import refuse_kinds
from lora_core.pipeline.prompting import BaseText, lacking
from lora_core.pipeline.recording import blame, bundled, checked, plain_options, recorded, unlinked
from lora_core.pipeline.request import ExportRequest
from lora_core.pipeline.slotting import describe, make_plans
from lora_core.pipeline.text_files import TextFiles
from lora_core.quant.policies import parse_policy
from lora_core.quant.policy import QuantPolicy, Scheme
from lora_core.specs import BackendSpec
from lora_core.suggestions import did_you_mean
from lora_core.units import size

if TYPE_CHECKING:
    from lora_core.hub import PluginHub


CHECK_STAGE = "Check"
"""The stage that ends when neither the core nor the backend has anything against the request."""


@attrs.frozen(kw_only=True)
class _Texts:
    """What is written of the base's text and of the adapters', and what to tell of it."""

    base: TextFiles
    adapters: AdapterTexts
    told: tuple[Event, ...]


def export(request: ExportRequest, out: Path, *, force: bool, emit: Emit, hub: PluginHub) -> Bundle:
    """Write a bundle; `lora_core.export` documents arguments and errors."""
    complaints = Complaints()
    refused = refusal(out.resolve(), force=force)
    complaints.add(BundleError, refused.problems if refused is not None else ())
    with stage(emit, CHECK_STAGE):
        job, maker, texts = _prepare(request, hub, complaints)
    _announce(job, texts, emit)
    _estimate(maker.estimate(job), out, emit)
    with creation(out, emit, force=force) as made:
        artifacts = maker.export(job, made.out, emit)
        blame(request.backend, unlinked(artifacts, job.adapters))
        refuse_fitted_elsewhere((placed.adapter for placed in job.adapters), artifacts.foundation)
        with stage(emit, "Write the bundle"):
            return made.commit(_manifest(request.backend, job, texts, artifacts, made.out))


def _prepare(request: ExportRequest, hub: PluginHub, complaints: Complaints) -> tuple[ExportJob, Backend, _Texts]:
    """Return the job, its backend and its texts, or raise every problem of the request together."""
    backend, handle, policy, options, placed, texts = None, None, None, None, None, None
    spec = hub.backends.find(request.backend)
    with complaints.collect():
        backend = hub.backend(request.backend)
    with complaints.collect():
        policy = _policy(request, spec, hub)
    with complaints.collect():
        options = hub.options(request.backend, request.options)
    with complaints.collect():
        handle = open_model(request.model, hub, download=request.download, source=request.source)
    if handle is not None:
        with complaints.collect():
            placed = _placed(request, handle, spec, hub)
        with complaints.collect():
            texts = _texts(request, handle)
    if not (backend and handle and policy and options is not None and placed is not None and texts):
        complaints.raise_any()
        raise AssertionError("what is missing has been complained of")
    plans, adapters = placed
    job = ExportJob(model=handle, adapters=adapters, plans=plans, policy=policy, options=options, cache=request.cache)
    complaints.add(UnsupportedError, backend.check(job))
    complaints.raise_any()
    return job, backend, texts


def _texts(request: ExportRequest, handle: ModelHandle) -> _Texts:
    """Read what model and adapters say about text; raises `ModelError` or `AdapterError`."""
    base, files = BaseText.of_model(handle, compact=request.compact_tokenizer)
    complaint = lacking(handle, base)
    given = located(adapter_references(request.adapters), download=request.download)
    references = sorted(given, key=lambda each: each.name)
    adapters = AdapterTextReader(base).read(references)
    return _Texts(base=files, adapters=adapters, told=(*((complaint,) if complaint else ()), *adapters.told))


def _placed(
    request: ExportRequest, model: ModelHandle, spec: BackendSpec | None, hub: PluginHub
) -> tuple[tuple[SlotPlan, ...], tuple[PlacedAdapter, ...]]:
    """Return the slot plans of the request, and its adapters in the order of their names, each on its plan."""
    base = model.summary
    reserved = spec.reserved if spec is not None else None
    references = located(adapter_references(request.adapters, reserved), download=request.download)
    read = read_adapters(references, base, adapter_formats(hub, model), reserved=reserved)
    adapters = sorted(read, key=lambda adapter: adapter.name)
    if spec is not None:
        refuse_kinds(spec, adapters)
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
        policy = parse_policy(
            name,
            hub.policies,
            group_size=request.group_size,
            embedding=request.embedding,
            head=request.head,
        )
        if spec is not None and policy.name not in spec.policies:
            raise PolicyError(
                f"Backend {spec.name!r} cannot do policy {policy.name!r}.",
                remedy=did_you_mean(policy.name, spec.policies),
            )
    if spec is not None and policy.embedding not in (None, _own_embedding(policy, hub)) and not spec.embeddings:
        raise PolicyError(
            f"Backend {spec.name!r} cannot quantize embeddings, and policy {policy.name!r} asks for it.",
            remedy="Leave --embedding out, or give --embedding float.",
        )
    if spec is not None and request.adapter_dtype is not None:
        policy = attrs.evolve(policy, lora=adapter_scheme(spec, request.adapter_dtype))
    return policy


def _own_embedding(policy: QuantPolicy, hub: PluginHub) -> Scheme | None:
    """Return what the registered policy of that name does to embeddings: who lists it in its descriptor can do it."""
    return hub.policies[policy.name].embedding if policy.name in hub.policies else None


def _announce(job: ExportJob, texts: _Texts, emit: Emit) -> None:
    for message in (*job.model.notes, *describe(job.plans, job.adapters)):
        emit(Noted(message=message))
    for placed in job.adapters:
        contradiction = other_base(placed.adapter, job.model.summary)
        if contradiction is not None:
            emit(Warned(message=contradiction))
    for event in (*inert(placed.adapter for placed in job.adapters), *texts.told):
        emit(event)


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


def _manifest(name: str, job: ExportJob, texts: _Texts, written: Artifacts, out: Path) -> Manifest:
    from lora_core.version import __version__

    text = (*texts.base.write(out), *texts.adapters.write(out))
    return checked(
        Manifest(
            backend=name,
            base=job.model.summary,
            policy=attrs.asdict(job.policy),
            foundation=written.foundation,
            plans=job.plans,
            options=plain_options(job.options),
            versions={**written.versions, "lora-core": __version__},
            artifacts=recorded((*written.files, *text), out, name),
            adapters=bundled(job.adapters, written, texts.adapters.promptings()),
            methods=written.methods,
            detail=written.detail,
            prompting=texts.base.prompting,
            base_weights=weights_digest(job.model.tensors()),
        )
    )
