"""Export the multi-method layout: one foundation, one program with a method for the base and one for each adapter."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import attrs

from lora_core.backend import Artifacts, ExportJob
from lora_core.bundle.bundle import Artifact, Method
from lora_core.events import Emit, stage
from lora_core.models.base import BaseModel
from lora_core.sharing.fingerprint import file_sha256
from lora_core_xnnpack.cache.entry import CacheSlot
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.multimethod.linking import (
    PROGRAM_FILE,
    TABLE_FILE,
    TEMPLATE_FILE,
    LinkTarget,
    link_together,
)
from lora_core_xnnpack.multimethod.lowering import LoweredTogether, lower_together
from lora_core_xnnpack.multimethod.relocations import Template
from lora_core_xnnpack.multimethod.residents import BASE_METHOD
from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
from lora_core_xnnpack.split.exporting import load_base
from lora_core_xnnpack.split.linking import written
from lora_core_xnnpack.split.lowering import FOUNDATION_FILE


def export_multimethod(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Lower the base and a template method for each plan together, then link every adapter."""
    base = load_base(job, emit)
    lowered = _lowered(job, base, emit)
    (out / FOUNDATION_FILE).write_bytes(lowered.foundation)
    target = LinkTarget(
        template=Template(program=ProgramParts.parse(lowered.program), table=lowered.table),
        plans=job.plans,
        foundation=file_sha256(out / FOUNDATION_FILE),
    )
    linked = link_together(target, job.adapters, out, emit)
    return attrs.evolve(
        linked,
        artifacts=(written(out, FOUNDATION_FILE, "foundation"), *_write_template(lowered, out), *linked.artifacts),
        methods=(Method(name=BASE_METHOD, program=PROGRAM_FILE), *linked.methods),
        versions={name: version(name) for name in ("executorch", "torch", "torchao")},
        detail={"planned_memory": {"model": dict(lowered.planned_memory)}},
    )


def _lowered(job: ExportJob, base: BaseModel, emit: Emit) -> LoweredTogether:
    """Lower the base and the templates, or take them from the cache."""
    slot = CacheSlot.of(job, base)
    kept = slot.read(WeightlessTogether, emit) if slot else None
    if kept is not None:
        with stage(emit, "Fill the cached program with this base's weights"):
            return kept.fill(base.module)
    with stage(emit, "Lower the base and the templates together"):
        lowered = lower_together(base, job.plans)
    if slot:
        blobs = stored_blobs(lowered.foundation, Path(FOUNDATION_FILE))
        slot.keep(lambda: WeightlessTogether.strip(base.module, lowered, blobs), emit)
    return lowered


def _write_template(lowered: LoweredTogether, out: Path) -> tuple[Artifact, ...]:
    """Write the template's two files; without slots there is nothing to link, and no template."""
    if not lowered.table.plans:
        return ()
    (out / TEMPLATE_FILE).parent.mkdir()
    (out / TEMPLATE_FILE).write_bytes(lowered.program)
    (out / TABLE_FILE).write_text(lowered.table.to_json(), "utf-8")
    return written(out, TEMPLATE_FILE, "template"), written(out, TABLE_FILE, "relocations")
