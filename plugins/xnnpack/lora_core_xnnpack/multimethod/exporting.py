"""Export the multi-method layout: one foundation, one program with a method for the base and one for each adapter."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import attrs

from lora_core.backend import Artifacts, ExportJob
from lora_core.bundle.bundle import Artifact, Method
from lora_core.events import Emit, Noted, stage
from lora_core.sharing.fingerprint import file_sha256
from lora_core_xnnpack.exporting import load_base
from lora_core_xnnpack.linking import written
from lora_core_xnnpack.lowered_set import FOUNDATION_FILE
from lora_core_xnnpack.multimethod.linking import (
    PROGRAM_FILE,
    TABLE_FILE,
    TEMPLATE_FILE,
    LinkTarget,
    link_together,
)
from lora_core_xnnpack.multimethod.lowering import LoweredTogether, lower_together
from lora_core_xnnpack.multimethod.program import ProgramParts
from lora_core_xnnpack.multimethod.relocations import Template
from lora_core_xnnpack.multimethod.residents import BASE_METHOD


def export_multimethod(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Lower the base and a template method for each plan together, then link every adapter."""
    if job.cache:
        emit(Noted(message="The template cache is not used: it does not hold programs with several methods."))
    base = load_base(job, emit)
    with stage(emit, "Lower the base and the templates together"):
        lowered = lower_together(base, job.plans)
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


def _write_template(lowered: LoweredTogether, out: Path) -> tuple[Artifact, ...]:
    """Write the template's two files; without slots there is nothing to link, and no template."""
    if not lowered.table.plans:
        return ()
    (out / TEMPLATE_FILE).parent.mkdir()
    (out / TEMPLATE_FILE).write_bytes(lowered.program)
    (out / TABLE_FILE).write_text(lowered.table.to_json(), "utf-8")
    return written(out, TEMPLATE_FILE, "template"), written(out, TABLE_FILE, "relocations")
