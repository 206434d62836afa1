"""Lower a base once, and one LoRA template for each slot plan: a constant number of methods whatever the adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

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
    from lora_core_coreml.weightless.forms import Weights

_DISTRIBUTIONS = ("lora-core", "lora-core-coreml", "executorch", "torch", "torchao", "coremltools", "numpy")
_AFTERWARDS = ("calibration", "emit_mlpackage", "rounding")


@attrs.frozen(kw_only=True)
class BaseToLower:
    """A base to lower: its structure, its weights to write, and what loads it where it must be held.

    `held` says that `prepared` has the weights.
    """

    prepared: PreparedBase
    weights: Weights
    load: Callable[[], PreparedBase]
    held: bool


@contextmanager
def lowered_program(job: ExportJob, emit: Emit) -> Iterator[ProgramObject]:
    """Yield the program object of `job`; its foundation lies in a temporary directory that goes afterwards."""
    with tempfile.TemporaryDirectory(prefix="lora-core-coreml-") as name:
        directory = Path(name)
        base = _prepared(job, emit)
        lowered = _lowered(job, base, directory, emit)
        with stage(emit, "merge equal constants"):
            program_object = assemble(lowered, job.plans, directory)
        yield program_object


def _prepared(job: ExportJob, emit: Emit) -> BaseToLower:
    """Prepare the base; warn of layers that stay at full precision, refuse names that its metadata has."""
    from lora_core_coreml.lowering import base
    from lora_core_coreml.streaming.base import StreamedWeights
    from lora_core_coreml.weightless.forms import HeldWeights

    with stage(emit, "prepare the base"):
        streamed = None if job.options.how_to_round.kind == "compensated" else StreamedWeights.of(job)
        prepared = base.prepare(job, emit) if streamed is None else streamed.prepared
    for message in describe_undivided(job.policy, prepared.assignment):
        emit(Warned(message=message))
    names = [placed.name for placed in job.adapters]
    problems = collisions(names, len(prepared.shapes) > 1, prepared.metadata)
    if problems:
        raise AdapterError(problems)
    if streamed is not None:
        return BaseToLower(prepared=prepared, weights=streamed, load=partial(base.prepare, job), held=False)
    return BaseToLower(prepared=prepared, weights=HeldWeights(prepared.module), load=lambda: prepared, held=True)


def _lowered(job: ExportJob, base: BaseToLower, directory: Path, emit: Emit) -> LoweredProgram:
    """Return the lowered methods: from the template cache if it has them, else without weights if that is possible."""
    from lora_core_coreml.weightless.lowering import StandInLowering
    from lora_core_coreml.weightless.program import WeightlessMethods

    kept = _place(job, base.prepared)
    program = kept.read(WeightlessMethods, emit) if kept else None
    if program is None:
        lowering = StandInLowering(job=job, prepared=base.prepared, directory=directory, emit=emit)
        program = lowering.weightless(always=kept is not None or not base.held)
        if program is None:
            with stage(emit, "load the base"):
                held = base.load()
            return lowering.with_weights(held)
        if kept:
            kept.keep(program, emit)
    with stage(emit, "fill the lowered methods with this base's weights"):
        return program.fill(base.weights)


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
