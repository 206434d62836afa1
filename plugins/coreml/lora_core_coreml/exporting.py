"""Lower a base once, and one LoRA template for each slot plan: a constant number of methods whatever the adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.backend import ExportJob
from lora_core.errors import AdapterError
from lora_core.events import Emit, Warned, stage
from lora_core.quant.undivided import describe_undivided
from lora_core.template_cache.identity import template_identity
from lora_core.template_cache.kept import KeptTemplates
from lora_core_coreml.lowering.assembly import assemble
from lora_core_coreml.lowering.program import LoweredProgram
from lora_core_coreml.program.naming import collisions
from lora_core_coreml.program.object import ProgramObject

if TYPE_CHECKING:
    from lora_core_coreml.lowering.base import PreparedBase

_DISTRIBUTIONS = ("lora-core", "lora-core-coreml", "executorch", "torch", "torchao", "coremltools", "numpy")
_AFTERWARDS = ("calibration", "emit_mlpackage", "rounding")


@contextmanager
def lowered_program(job: ExportJob, emit: Emit) -> Iterator[ProgramObject]:
    """Yield the program object of `job`; its foundation lies in a temporary directory that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="lora-core-coreml-") as name:
        directory = Path(name)
        prepared = _prepared(job, emit)
        lowered = _lowered(job, prepared, directory, emit)
        with stage(emit, "merge equal constants"):
            program_object = assemble(lowered, job.plans, directory)
        yield program_object


def _prepared(job: ExportJob, emit: Emit) -> PreparedBase:
    """Load and prepare the base; warn of layers that stay at full precision, refuse names that its metadata has."""
    from lora_core_coreml.lowering import base

    with stage(emit, "load and prepare the base"):
        prepared = base.prepare(job, emit)
    for message in describe_undivided(job.policy, prepared.assignment):
        emit(Warned(message=message))
    names = [placed.name for placed in job.adapters]
    problems = collisions(names, len(prepared.shapes) > 1, prepared.metadata)
    if problems:
        raise AdapterError(problems)
    return prepared


def _lowered(job: ExportJob, prepared: PreparedBase, directory: Path, emit: Emit) -> LoweredProgram:
    """Return the lowered methods: from the template cache if it has them, else without weights if that is possible."""
    from lora_core_coreml.weightless.lowering import StandInLowering
    from lora_core_coreml.weightless.program import WeightlessMethods

    kept = _place(job, prepared)
    program = kept.read(WeightlessMethods, emit) if kept else None
    if program is None:
        lowering = StandInLowering(job=job, prepared=prepared, directory=directory, emit=emit)
        program = lowering.weightless(always=kept is not None)
        if program is None:
            return lowering.with_weights()
        if kept:
            kept.keep(program, emit)
    with stage(emit, "fill the lowered methods with this base's weights"):
        return program.fill(prepared.module)


def _place(job: ExportJob, prepared: PreparedBase) -> KeptTemplates | None:
    """Return where the job's methods are kept, None without a cache or for a module whose code no name can tell."""
    from lora_core_coreml.weightless.standins import what_stays

    if job.cache is None:
        return None
    lowered = {
        "paths": prepared.paths,
        "tensors": what_stays(prepared.module),
        "metadata": prepared.metadata,
        "assignment": prepared.assignment.schemes,
    }
    identity = template_identity(job, lowered, _DISTRIBUTIONS, after=_AFTERWARDS)
    return None if identity is None else KeptTemplates(directory=job.cache / identity)
