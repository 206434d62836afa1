"""Export the split layout: foundation, base program, templates, and every adapter linked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import attrs

from lora_core.backend import Artifacts, ExportJob
from lora_core.bundle.bundle import Method
from lora_core.events import Emit, Warned, stage
from lora_core.models.base import BaseModel, ModelOptions
from lora_core.quant.undivided import describe_undivided
from lora_core.sharing.fingerprint import file_sha256
from lora_core_xnnpack.cache.entry import CacheSlot
from lora_core_xnnpack.files.data_file import serialize, stored_blobs
from lora_core_xnnpack.files.named_blobs import mapped
from lora_core_xnnpack.quant import quantize
from lora_core_xnnpack.split.linking import LinkTarget, link_all, write_parts, write_template, written
from lora_core_xnnpack.split.lowering import FOUNDATION_FILE, lower_all
from lora_core_xnnpack.split.rewriting import Template
from lora_core_xnnpack.split.weightless import PlannedMemory, WeightlessSet

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
    slot = CacheSlot.of(job, base)
    kept = slot.read(WeightlessSet, emit) if slot else None
    if kept is not None:
        with stage(emit, "Fill the cached programs with this base's weights"):
            blobs, templates = kept.fill(base.module)
            write_parts(out / FOUNDATION_FILE, serialize(blobs))
        return templates, kept.planned_memory
    programs, planned = lower_all(base, job.plans, out, emit)
    if slot:
        data = mapped(out / FOUNDATION_FILE)
        stored = stored_blobs(data, out / FOUNDATION_FILE)
        slot.keep(lambda: WeightlessSet.strip(base.module, programs, planned, data, stored), emit)
    return programs, planned
