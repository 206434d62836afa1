"""Export the split layout: foundation, base program, templates, and every adapter linked."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import attrs

from lora_core.backend import Artifacts, ExportJob
from lora_core.bundle.bundle import Method
from lora_core.events import Emit, Noted, Warned, stage
from lora_core.models.base import BaseModel, ModelOptions
from lora_core.quant.undivided import describe_undivided
from lora_core.sharing.fingerprint import file_sha256
from lora_core_xnnpack.cache.key import cache_key
from lora_core_xnnpack.cache.store import DamagedEntryError, Entry, PlannedMemory, read_entry, write_entry
from lora_core_xnnpack.cache.weightless import DependsOnWeightsError, fill, strip
from lora_core_xnnpack.flat_tensor import serialize, stored_blobs
from lora_core_xnnpack.link import Template
from lora_core_xnnpack.linking import LinkTarget, link_all, write_parts, write_template, written
from lora_core_xnnpack.lowered_set import FOUNDATION_FILE, lower_all
from lora_core_xnnpack.named_blobs import mapped
from lora_core_xnnpack.quant import quantize

BASE_PROGRAM = "base.pte"


def export_split(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Lower the base and a template for each plan (or take both from the cache), then link every adapter."""
    base = load_base(job, emit)
    programs, planned = _programs(job, base, out, emit)
    (out / BASE_PROGRAM).write_bytes(programs[0].program)
    artifacts = [written(out, FOUNDATION_FILE, "foundation"), written(out, BASE_PROGRAM, "program")]
    for index, template in enumerate(programs[1:]):
        artifacts += write_template(template, index, out)
    target = LinkTarget(
        plans=job.plans,
        template=programs[1:].__getitem__,
        foundation=file_sha256(out / FOUNDATION_FILE),
        embed=job.options.adapter_data == "embedded",
    )
    linked = link_all(target, job.adapters, out, emit)
    return attrs.evolve(
        linked,
        artifacts=(*artifacts, *linked.artifacts),
        methods=(Method(name="forward", program=BASE_PROGRAM), *linked.methods),
        versions={name: version(name) for name in ("executorch", "torch", "torchao")},
        detail={"planned_memory": planned},
    )


def load_base(job: ExportJob, emit: Emit) -> BaseModel:
    """Load the base once and quantize it as the policy decides; layers left out are warned of."""
    options = job.options
    with stage(emit, "Load the base model"):
        base = job.model.load(ModelOptions(max_context_len=options.max_context_len, max_seq_len=options.max_seq_len))
    assignment = job.policy.assign(base.summary.layers)
    for message in describe_undivided(job.policy, assignment):
        emit(Warned(message=message))
    if any(assignment.schemes.values()):
        with stage(emit, f"Quantize the base ({job.policy.name})"):
            quantize(base.module, base.summary.layers, assignment, scale_search=options.scale_search)
    return base


def _programs(job: ExportJob, base: BaseModel, out: Path, emit: Emit) -> tuple[Sequence[Template], PlannedMemory]:
    """Return the base program and a template for each plan, and write the foundation file."""
    key = cache_key(job, base, job.plans) if job.cache else None
    directory = job.cache / key if job.cache and key else None
    entry = _cached(directory, emit) if directory else None
    if entry is not None:
        with stage(emit, "Fill the cached programs with this base's weights"):
            blobs, templates = fill(entry.weightless, base.module)
            write_parts(out / FOUNDATION_FILE, serialize(blobs))
        return templates, entry.planned_memory
    programs, planned = lower_all(base, job.plans, out, emit)
    if directory:
        with stage(emit, "Keep the lowered programs in the cache"):
            _keep(directory, base, programs, planned, out / FOUNDATION_FILE, emit)
    return programs, planned


def _cached(directory: Path, emit: Emit) -> Entry | None:
    try:
        return read_entry(directory)
    except DamagedEntryError as error:
        emit(Warned(message=f"The cache entry {directory} is damaged and is built anew: {error}"))
        shutil.rmtree(directory)
        return None


def _keep(
    directory: Path, base: BaseModel, programs: Sequence[Template], planned: PlannedMemory, foundation: Path, emit: Emit
) -> None:
    data = mapped(foundation)
    try:
        weightless = strip(base.module, programs, data, stored_blobs(data, foundation))
    except DependsOnWeightsError as error:
        emit(Noted(message=f"The lowered programs are not kept in the cache: {error}"))
        return
    try:
        write_entry(directory, Entry(weightless=weightless, planned_memory=planned))
    except OSError as error:
        emit(Warned(message=f"The lowered programs could not be kept in the cache at {directory}: {error}"))
