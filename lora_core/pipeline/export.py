"""Export: a model and its adapters become a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.identity import other_base
from lora_core.adapters.reading import read_adapters
from lora_core.backend import Artifacts, Backend, ExportJob
from lora_core.bundle.bundle import Artifact, Bundle, Manifest
from lora_core.bundle.creation import creation, refusal
from lora_core.bundle.durable import storage_errors
from lora_core.errors import BundleError, PolicyError, UnsupportedError
from lora_core.events import Emit, Noted, Warned, stage
from lora_core.models.base import ModelHandle, TokenizerFiles
from lora_core.pipeline.complaints import Complaints
from lora_core.pipeline.given import adapter_formats, adapter_references, open_model
from lora_core.pipeline.recording import blame, checked, on_plans, plain_options, recorded, unrecorded
from lora_core.pipeline.slotting import PlanKind, describe, make_plans
from lora_core.quant.policies import parse_policy
from lora_core.quant.policy import QuantPolicy
from lora_core.suggestions import did_you_mean

if TYPE_CHECKING:
    from lora_core.adapters.reference import AdapterReference
    from lora_core.hub import PluginHub


@attrs.frozen(kw_only=True)
class Request:
    """What an export was asked for, as `lora_core.export` documents it."""

    model: str | Path | ModelHandle
    adapters: Mapping[str, str | Path] | Sequence[AdapterReference]
    backend: str
    policy: str | QuantPolicy
    options: Mapping[str, Any]
    plan: PlanKind
    max_rank: int | None
    targets: str | Sequence[str] | None
    group_size: int | None
    embedding: str | None
    cache: Path | None
    download: bool


def export(
    model: str | Path | ModelHandle,
    *,
    adapters: Mapping[str, str | Path] | Sequence[AdapterReference],
    backend: str,
    policy: str | QuantPolicy,
    out: Path,
    options: Mapping[str, Any],
    plan: PlanKind,
    max_rank: int | None,
    targets: str | Sequence[str] | None,
    group_size: int | None,
    embedding: str | None,
    cache: Path | None,
    download: bool,
    force: bool,
    emit: Emit,
    hub: PluginHub,
) -> Bundle:
    """Write a bundle; `lora_core.export` documents arguments and errors."""
    request = Request(
        model=model,
        adapters=adapters,
        backend=backend,
        policy=policy,
        options=options,
        plan=plan,
        max_rank=max_rank,
        targets=targets,
        group_size=group_size,
        embedding=embedding,
        cache=cache,
        download=download,
    )
    complaints = Complaints()
    refused = refusal(out.resolve(), force=force)
    complaints.add(BundleError, refused.problems if refused is not None else ())
    with stage(emit, "Check"):
        job, maker = _prepare(request, hub, complaints)
    _announce(job, emit)
    with creation(out, emit, force=force) as made:
        artifacts = maker.export(job, made.out, emit)
        blame(request.backend, unrecorded(artifacts, job.adapters))
        with stage(emit, "Write the bundle"):
            return made.commit(_manifest(request.backend, job, artifacts, made.out))


def _prepare(request: Request, hub: PluginHub, complaints: Complaints) -> tuple[ExportJob, Backend]:
    """Return the job and its backend, or raise every problem of the request together."""
    backend, handle, policy, options, adapters = None, None, None, None, None
    with complaints.collect():
        backend = hub.backend(request.backend)
    with complaints.collect():
        policy = _policy(request, hub)
    with complaints.collect():
        options = hub.options(request.backend, request.options)
    with complaints.collect():
        handle = open_model(request.model, hub, download=request.download)
    plans = None
    if handle is not None:
        base = handle.summary
        with complaints.collect():
            references = adapter_references(request.adapters)
            adapters = read_adapters(references, base, adapter_formats(hub))
        if adapters is not None:
            adapters = tuple(sorted(adapters, key=lambda adapter: adapter.name))
            with complaints.collect():
                plans = make_plans(
                    request.plan, adapters, base.layers, max_rank=request.max_rank, targets=request.targets
                )
    if backend is None or handle is None or policy is None or options is None or adapters is None or plans is None:
        complaints.raise_any()
        raise AssertionError("what is missing has been complained of")
    job = ExportJob(model=handle, adapters=adapters, plans=plans, policy=policy, options=options, cache=request.cache)
    complaints.add(UnsupportedError, backend.check(job))
    complaints.raise_any()
    return job, backend


def _policy(request: Request, hub: PluginHub) -> QuantPolicy:
    if isinstance(request.policy, QuantPolicy):
        return request.policy
    policy = parse_policy(request.policy, hub.policies, group_size=request.group_size, embedding=request.embedding)
    offered = hub.backends[request.backend].policies if request.backend in hub.backends else ()
    if offered and policy.name not in offered:
        raise PolicyError(
            f"Backend {request.backend!r} cannot do policy {policy.name!r}.",
            remedy=did_you_mean(policy.name, offered),
        )
    return policy


def _announce(job: ExportJob, emit: Emit) -> None:
    for message in describe(job.plans, job.adapters):
        emit(Noted(message=message))
    for adapter in job.adapters:
        contradiction = other_base(adapter, job.model.summary)
        if contradiction is not None:
            emit(Warned(message=contradiction))


def _manifest(name: str, job: ExportJob, written: Artifacts, out: Path) -> Manifest:
    from lora_core import __version__

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
            artifacts=recorded((*written.artifacts, *tokenizer), out, name),
            adapters=on_plans(written.adapters, job.adapters, job.plans),
            methods=written.methods,
            detail=written.detail,
        )
    )


def _copy_tokenizer(tokenizer: TokenizerFiles | None, out: Path) -> Iterable[Artifact]:
    for file in tokenizer.files if tokenizer is not None else ():
        copy = out / "tokenizer" / file.name
        with storage_errors("copy", file):
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)
        yield Artifact(path=f"tokenizer/{file.name}", role="tokenizer", sha256="", size=0)
