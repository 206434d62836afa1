"""Lower a base once, and one LoRA template for each slot plan: a constant number of methods whatever the adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.backend import ExportJob
from lora_core.errors import AdapterError
from lora_core.events import Emit, Noted, Warned, stage
from lora_core.quant.undivided import describe_undivided
from lora_core.template_cache.identity import template_identity
from lora_core.template_cache.kept import KeptTemplates
from lora_core_coreml.lowering.assembly import assemble
from lora_core_coreml.lowering.program import LoweredProgram
from lora_core_coreml.program.naming import collisions
from lora_core_coreml.program.object import ProgramObject

if TYPE_CHECKING:
    from lora_core_coreml.lowering.base import PreparedBase
    from lora_core_coreml.weightless.program import WeightlessMethods

_DISTRIBUTIONS = ("lora-core", "lora-core-coreml", "executorch", "torch", "torchao", "coremltools", "numpy")
_AFTERWARDS = ("emit_mlpackage",)


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
        prepared = base.prepare(job)
    for message in describe_undivided(job.policy, prepared.assignment):
        emit(Warned(message=message))
    names = [placed.name for placed in job.adapters]
    problems = collisions(names, len(prepared.shapes) > 1, prepared.metadata)
    if problems:
        raise AdapterError(problems)
    return prepared


def _lowered(job: ExportJob, prepared: PreparedBase, directory: Path, emit: Emit) -> LoweredProgram:
    """Return the lowered methods, from the template cache if it has them; what is lowered for it, it keeps."""
    from lora_core_coreml.lowering.methods import lower_all
    from lora_core_coreml.weightless.program import WeightlessMethods

    kept = _place(job, prepared)
    if kept is None:
        return lower_all(job, prepared, directory, emit)
    program = kept.read(WeightlessMethods, emit)
    if program is None:
        program = _lowered_weightless(job, prepared, directory, emit)
        if program is None:
            return lower_all(job, prepared, directory, emit)
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


def _lowered_weightless(
    job: ExportJob, prepared: PreparedBase, directory: Path, emit: Emit
) -> WeightlessMethods | None:
    """Lower with stand-ins for the base's weights; None, which is noted, if the methods depend on them."""
    from lora_core_coreml.lowering.methods import lower_all
    from lora_core_coreml.weightless.program import NotWeightlessError, WeightlessMethods
    from lora_core_coreml.weightless.standins import with_stand_ins

    stand_in = attrs.evolve(prepared, module=with_stand_ins(prepared.module))
    lowered = lower_all(job, stand_in, directory / "weightless", emit)
    try:
        return WeightlessMethods.strip(lowered, stand_in.module)
    except NotWeightlessError as error:
        emit(Noted(message=f"The lowered programs are not kept in the cache: {error}"))
        return None
