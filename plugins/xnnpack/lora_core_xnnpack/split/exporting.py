"""Export the split layout: foundation, base program, templates, and every adapter linked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.backend import Artifacts, ExportJob, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.bundle.hashing import file_sha256
from lora_core.events import Emit
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import dtype_of
from lora_core_xnnpack.artifacts import FOUNDATION_FILE, MARK_DETAIL, tool_versions, write_parts
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.marks import foundation_mark, mark_file, program_marks
from lora_core_xnnpack.files.named_blobs import mapped
from lora_core_xnnpack.lowering.base import load_base, warn_of_undivided
from lora_core_xnnpack.split.linking import SplitTarget, link_all, write_template
from lora_core_xnnpack.split.lowering import FoundationIndex, lower_all, lower_templates
from lora_core_xnnpack.split.relocations import SplitTemplate
from lora_core_xnnpack.split.rewriting import rewrite
from lora_core_xnnpack.split.weightless import PlannedMemory, WeightlessSet
from lora_core_xnnpack.streaming.weightless import Lowering, Missing, streamed

if TYPE_CHECKING:
    from lora_core_xnnpack.stamping.shallow import LayeredBase

BASE_PROGRAM = "base.pte"


def export_split(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Lower the base and a template for each plan (or take both from the cache), then link every adapter."""
    warn_of_undivided(job, emit)
    programs, planned = _programs(job, out, emit)
    foundation, mark = file_sha256(out / FOUNDATION_FILE), foundation_mark(out / FOUNDATION_FILE)
    write_parts(out / BASE_PROGRAM, rewrite(programs[0], (), program_marks(mark)))
    templates = [attrs.evolve(each, table=attrs.evolve(each.table, mark=mark)) for each in programs[1:]]
    files = [
        WrittenFile(path=FOUNDATION_FILE, role="foundation", sha256=foundation),
        WrittenFile(path=BASE_PROGRAM, role="program"),
    ]
    for index, template in enumerate(templates):
        files += write_template(template, index, foundation, out)
    target = SplitTarget(
        template=templates.__getitem__, foundation=foundation, embed=job.options.adapter_data == "embedded"
    )
    linked = link_all(target, job.adapters, out, emit)
    return attrs.evolve(
        linked,
        files=(*files, *linked.files),
        methods=(Method(name="forward", program=BASE_PROGRAM), *linked.methods),
        versions=tool_versions(),
        detail={"planned_memory": planned, MARK_DETAIL: mark},
    )


def _programs(job: ExportJob, out: Path, emit: Emit) -> tuple[Sequence[SplitTemplate], PlannedMemory]:
    """Return the base program and a template for each plan, and write the foundation file."""
    dtype = dtype_of(job.policy)

    def stamp(layers: LayeredBase, missing: Missing[WeightlessSet], emit: Emit) -> WeightlessSet:
        from lora_core_xnnpack.split.stamping import stamp_split

        return stamp_split(layers, missing.plans, emit, dtype=dtype, known=missing.base)

    def lower(model: BaseModel, work: Path, missing: Missing[WeightlessSet]) -> WeightlessSet:
        if missing.base is not None:
            index = FoundationIndex.of(missing.base.foundation, model.module)
            templates, planned = lower_templates(model, missing.plans, index, emit, dtype=dtype)
            return missing.base.with_templates(templates, planned, list(index.digests))
        programs, planned = lower_all(model, missing.plans, work, emit, dtype=dtype)
        data = mapped(work / FOUNDATION_FILE)
        return WeightlessSet.strip(model.module, programs, planned, data, stored_blobs(data, work / FOUNDATION_FILE))

    written = streamed(job, WeightlessSet, Lowering(stamp=stamp, whole=lower), out, emit)
    if written is not None:
        programs, blobs = written
        return programs.fill(blobs), programs.planned_memory
    made = lower_all(load_base(job, emit), job.plans, out, emit, dtype=dtype)
    mark_file(out / FOUNDATION_FILE)
    return made
