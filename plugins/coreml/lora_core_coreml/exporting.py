"""Lower a base once, and one LoRA template for each slot plan: a constant number of methods whatever the adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from lora_core.temporary import temporary_directory
from lora_core_coreml.lowering.assembly import assemble
from lora_core_coreml.lowering.program import LoweredProgram, names_of_groups
from lora_core_coreml.program.naming import collisions
from lora_core_coreml.program.object import ProgramObject

if TYPE_CHECKING:
    from lora_core_coreml.lowering.base import PreparedBase
    from lora_core_coreml.weightless.forms import Weights

_DISTRIBUTIONS = ("lora-core", "lora-core-coreml", "executorch", "torch", "torchao", "coremltools", "numpy")
_CONTENT = 1
"""Goes up with what is kept of methods."""
_AFTERWARDS = ("calibration", "emit_mlpackage", "lora", "rounding")


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
    with temporary_directory("coreml") as directory:
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
        streamed = None if job.options.how_to_round.calibrates else StreamedWeights.of(job)
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

    places = _places(job, base.prepared)
    read = [place.read(WeightlessMethods, emit) if place else None for place in places]
    # A template that is kept may have had another number.
    names = names_of_groups(len(job.plans))
    kept = [group.called(name) if group else None for group, name in zip(read, names, strict=True)]
    groups = [group for group in kept if group]
    if len(groups) < len(kept):
        lowering = StandInLowering(job=job, prepared=base.prepared, directory=directory, emit=emit)
        made = lowering.weightless(kept, always=any(places) or not base.held)
        if made is None:
            with stage(emit, "load the base"):
                held = base.load()
            return lowering.with_weights(held)
        groups = list(made)
    for place, before, group in zip(places, kept, groups, strict=True):
        if place and before is None:
            place.keep(group, emit)
    with stage(emit, "fill the lowered methods with this base's weights"):
        return WeightlessMethods.joined(groups).fill(base.weights)


def _places(job: ExportJob, prepared: PreparedBase) -> Sequence[KeptTemplates | None]:
    """Return where the base's methods are kept, and those of each template.

    None without a cache or for a module whose code no name can tell.
    """
    from lora_core_coreml.weightless.standins import what_stays

    groups = ((), *((plan,) for plan in job.plans))
    if job.cache is None:
        return [None] * len(groups)
    lowered = {
        "content": _CONTENT,
        "paths": prepared.paths,
        "tensors": what_stays(prepared.module),
        "metadata": prepared.metadata,
        "assignment": prepared.assignment.schemes,
    }
    places: list[KeptTemplates | None] = []
    for plans in groups:
        alone = attrs.evolve(job, adapters=(), plans=plans)
        identity = template_identity(alone, lowered, _DISTRIBUTIONS, after=_AFTERWARDS)
        places.append(None if identity is None else KeptTemplates(directory=job.cache / identity))
    return places
