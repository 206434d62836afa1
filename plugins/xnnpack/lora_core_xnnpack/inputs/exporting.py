"""Export with adapters as inputs: one foundation, one program, and a file for each adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.slots.input_names import input_key
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, ExportJob, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.bundle.hashing import file_sha256
from lora_core.events import Emit, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.artifacts import FOUNDATION_FILE, MARK_DETAIL, tool_versions, write_parts
from lora_core_xnnpack.files.marks import foundation_mark, inputs_text, program_marks
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.inputs.linking import FORWARD, PROGRAM_FILE, write_all
from lora_core_xnnpack.inputs.lowering import lower_with_inputs
from lora_core_xnnpack.lowering.base import warn_of_undivided
from lora_core_xnnpack.multimethod.lowering import LoweredTogether
from lora_core_xnnpack.multimethod.streaming import lowered_together

if TYPE_CHECKING:
    from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
    from lora_core_xnnpack.stamping.shallow import LayeredBase


def export_with_inputs(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Lower the base, alone and with adapters as inputs, and write a file for each adapter."""
    warn_of_undivided(job, emit)
    lowered = _lowered(job, out, emit)
    foundation, mark = file_sha256(out / FOUNDATION_FILE), foundation_mark(out / FOUNDATION_FILE)
    assert mark is not None, "it was just marked"
    _write_program(lowered, mark, out / PROGRAM_FILE)
    linked = write_all(foundation, mark, job.adapters, out, emit)
    files = (
        WrittenFile(path=FOUNDATION_FILE, role="foundation", sha256=foundation),
        WrittenFile(path=PROGRAM_FILE, role="program"),
    )
    return attrs.evolve(
        linked,
        files=(*files, *linked.files),
        methods=(Method(name=FORWARD, program=PROGRAM_FILE), *linked.methods),
        versions=tool_versions(),
        detail={"planned_memory": {"model": dict(lowered.planned_memory)}, MARK_DETAIL: mark},
    )


def _lowered(job: ExportJob, out: Path, emit: Emit) -> LoweredTogether:
    """Return the program and what its methods take, and write the foundation file."""

    def stamp(layers: LayeredBase, plans: Sequence[SlotPlan], emit: Emit) -> WeightlessTogether:
        from lora_core_xnnpack.inputs.stamping import stamp_with_inputs

        return stamp_with_inputs(layers, plans, emit)

    def lower(model: BaseModel, work: Path) -> LoweredTogether:
        with stage(emit, "Lower the base, alone and with adapters as inputs"):
            return lower_with_inputs(model, job.plans, work)

    return lowered_together(job, out, emit, stamp=stamp, lower=lower)


def _write_program(lowered: LoweredTogether, mark: str, path: Path) -> None:
    """Write the program with the mark of its foundation, and what its methods take of an adapter."""
    program = ProgramParts.parse(lowered.program)
    named = program_marks(mark)
    for plan in lowered.table.plans:
        named.append(inputs_text(plan.method, (input_key(each.module, each.part) for each in plan.tensors)))
    computing = {name: method for name, method in program.methods.items() if method.computes}
    write_parts(path, program.assemble(computing, named))
