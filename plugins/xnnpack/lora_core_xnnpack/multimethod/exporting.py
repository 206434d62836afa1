"""Export the multi-method layout: one foundation, one program with a method for the base and one for each adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, ExportJob, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.bundle.hashing import file_sha256
from lora_core.events import Emit, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import dtype_of
from lora_core_xnnpack.artifacts import FOUNDATION_FILE, MARK_DETAIL, tool_versions
from lora_core_xnnpack.files.marks import foundation_mark
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.lowering.base import warn_of_undivided
from lora_core_xnnpack.multimethod.linking import (
    PROGRAM_FILE,
    TABLE_FILE,
    TEMPLATE_FILE,
    MultimethodTarget,
    link_together,
)
from lora_core_xnnpack.multimethod.lowering import LoweredTogether, lower_together
from lora_core_xnnpack.multimethod.relocations import MultimethodTemplate
from lora_core_xnnpack.multimethod.residents import BASE_METHOD
from lora_core_xnnpack.multimethod.streaming import lowered_together

if TYPE_CHECKING:
    from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
    from lora_core_xnnpack.stamping.shallow import LayeredBase


def export_multimethod(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Lower the base and a template method for each plan together, then link every adapter."""
    warn_of_undivided(job, emit)
    lowered = _lowered(job, out, emit)
    foundation, mark = file_sha256(out / FOUNDATION_FILE), foundation_mark(out / FOUNDATION_FILE)
    lowered = attrs.evolve(lowered, table=attrs.evolve(lowered.table, mark=mark))
    template = MultimethodTemplate(program=ProgramParts.parse(lowered.program), table=lowered.table)
    linked = link_together(MultimethodTarget(template=template, foundation=foundation), job.adapters, out, emit)
    stored = WrittenFile(path=FOUNDATION_FILE, role="foundation", sha256=foundation)
    return attrs.evolve(
        linked,
        files=(stored, *_write_template(lowered, foundation, out), *linked.files),
        methods=(Method(name=BASE_METHOD, program=PROGRAM_FILE), *linked.methods),
        versions=tool_versions(),
        detail={"planned_memory": {"model": dict(lowered.planned_memory)}, MARK_DETAIL: mark},
    )


def _lowered(job: ExportJob, out: Path, emit: Emit) -> LoweredTogether:
    """Return the base and the templates in one program, and write the foundation file."""
    dtype = dtype_of(job.policy)

    def stamp(layers: LayeredBase, plans: Sequence[SlotPlan], emit: Emit) -> WeightlessTogether:
        from lora_core_xnnpack.multimethod.stamping import stamp_together

        return stamp_together(layers, plans, emit, dtype=dtype)

    def lower(model: BaseModel, work: Path) -> LoweredTogether:
        with stage(emit, "Lower the base and the templates together"):
            return lower_together(model, job.plans, work, dtype=dtype)

    return lowered_together(job, out, emit, stamp=stamp, lower=lower)


def _write_template(lowered: LoweredTogether, foundation: str, out: Path) -> tuple[WrittenFile, ...]:
    """Write the template's two files; without slots there is nothing to link, and no template."""
    if not lowered.table.plans:
        return ()
    (out / TEMPLATE_FILE).parent.mkdir()
    (out / TEMPLATE_FILE).write_bytes(lowered.program)
    (out / TABLE_FILE).write_text(lowered.table.to_json(foundation), "utf-8")
    return WrittenFile(path=TEMPLATE_FILE, role="template"), WrittenFile(path=TABLE_FILE, role="relocations")
