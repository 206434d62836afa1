"""Export the split layout: foundation, base program, templates, and every adapter linked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.backend import Artifacts, ExportJob, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.bundle.hashing import file_sha256
from lora_core.events import Emit, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.artifacts import FOUNDATION_FILE, tool_versions, write_parts
from lora_core_xnnpack.cache.entry import CacheEntry
from lora_core_xnnpack.files.data_file import serialize, stored_blobs
from lora_core_xnnpack.files.named_blobs import mapped
from lora_core_xnnpack.lowering.base import load_base
from lora_core_xnnpack.split.linking import SplitTarget, link_all, write_template
from lora_core_xnnpack.split.lowering import lower_all
from lora_core_xnnpack.split.relocations import SplitTemplate
from lora_core_xnnpack.split.weightless import PlannedMemory, WeightlessSet

BASE_PROGRAM = "base.pte"


def export_split(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Lower the base and a template for each plan (or take both from the cache), then link every adapter."""
    base = load_base(job, emit)
    programs, planned = _programs(job, base, out, emit)
    (out / BASE_PROGRAM).write_bytes(programs[0].program)
    foundation = file_sha256(out / FOUNDATION_FILE)
    files = [
        WrittenFile(path=FOUNDATION_FILE, role="foundation", sha256=foundation),
        WrittenFile(path=BASE_PROGRAM, role="program"),
    ]
    for index, template in enumerate(programs[1:]):
        files += write_template(template, index, foundation, out)
    target = SplitTarget(
        template=programs[1:].__getitem__, foundation=foundation, embed=job.options.adapter_data == "embedded"
    )
    linked = link_all(target, job.adapters, out, emit)
    return attrs.evolve(
        linked,
        files=(*files, *linked.files),
        methods=(Method(name="forward", program=BASE_PROGRAM), *linked.methods),
        versions=tool_versions(),
        detail={"planned_memory": planned},
    )


def _programs(job: ExportJob, base: BaseModel, out: Path, emit: Emit) -> tuple[Sequence[SplitTemplate], PlannedMemory]:
    """Return the base program and a template for each plan, and write the foundation file."""
    entry = CacheEntry.of(job, base)
    kept = entry.read(WeightlessSet, emit) if entry else None
    if kept is not None:
        with stage(emit, "Fill the cached programs with this base's weights"):
            blobs, templates = kept.fill(base.module)
            write_parts(out / FOUNDATION_FILE, serialize(blobs))
        return templates, kept.planned_memory
    programs, planned = lower_all(base, job.plans, out, emit)
    if entry:
        data = mapped(out / FOUNDATION_FILE)
        stored = stored_blobs(data, out / FOUNDATION_FILE)
        entry.keep(lambda: WeightlessSet.strip(base.module, programs, planned, data, stored), emit)
    return programs, planned
