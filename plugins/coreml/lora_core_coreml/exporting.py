"""Lower a base once, and one LoRA template for each slot plan: a constant number of methods whatever the adapters."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.errors import AdapterError
from lora_core.events import Emit, StageAdvanced, Warned, stage
from lora_core.layers import ModelSummary
from lora_core.models.tracing import tracing
from lora_core.quant.undivided import describe_undivided
from lora_core_coreml.lowering.assembly import assemble
from lora_core_coreml.lowering.inputs import MethodShape
from lora_core_coreml.lowering.method import LoweredMethod, export_method, lower_method
from lora_core_coreml.lowering.sentinels import Sentinels, attach
from lora_core_coreml.program.naming import Kind, collisions
from lora_core_coreml.program.object import ProgramObject

if TYPE_CHECKING:
    import torch

    from lora_core_coreml.lowering.base import PreparedBase

_LOWER = "lower methods"


@contextmanager
def lowered_program(job: ExportJob, emit: Emit) -> Iterator[ProgramObject]:
    """Yield the program object of `job`; its foundation lies in a temporary directory that goes afterwards."""
    from lora_core_coreml.lowering import inputs

    with tempfile.TemporaryDirectory(prefix="lora-core-coreml-") as name:
        directory = Path(name)
        prepared = _prepared(job, emit)
        with stage(emit, _LOWER):
            total = len(prepared.shapes) * (1 + len(job.plans))
            lowering = _Lowering(job.model.summary, prepared, directory, emit, total)
            exported = {s.kind: (s, lowering.export(s)) for s in prepared.shapes}
            constants = dict(prepared.metadata)
            if prepared.static:
                constants |= inputs.constant_methods(prepared.module, exported, prepared.dtype)
            methods = []
            for kind, (_, program) in exported.items():
                methods.append((kind, lowering.lower(kind, program, constants)))
                constants = {}
            del exported
            templates = [lowering.template(number, plan) for number, plan in enumerate(job.plans)]
        with stage(emit, "merge equal constants"):
            program_object = assemble(methods, templates, directory)
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


class _Lowering:
    """Lowers the methods of one base, one after the other, so that only one is in memory."""

    def __init__(self, model: ModelSummary, prepared: PreparedBase, directory: Path, emit: Emit, total: int) -> None:
        self._model = model
        self._base = prepared
        self._directory = directory
        self._emit = emit
        self._total = total
        self._done = 0

    def export(self, shape: MethodShape) -> torch.export.ExportedProgram:
        with tracing(self._model):
            return export_method(self._base.module, self._base.inputs(shape))

    def lower(self, name: str, program: torch.export.ExportedProgram, constants: Mapping[str, Any]) -> LoweredMethod:
        lowered = lower_method(name, program, self._directory, float16=self._base.float16, constants=constants)
        self._done += 1
        self._emit(StageAdvanced(stage=_LOWER, done=self._done, total=self._total))
        return lowered

    def template(self, number: int, plan: SlotPlan) -> tuple[list[tuple[Kind, LoweredMethod]], Sentinels]:
        from lora_core.models.injection import eject

        sentinels = attach(self._base.module, plan, self._base.paths, float16=self._base.float16)
        try:
            methods: list[tuple[Kind, LoweredMethod]] = []
            for shape in self._base.shapes:
                name = f"template{number}_{shape.kind}"
                methods.append((shape.kind, self.lower(name, self.export(shape), {})))
        finally:
            eject(self._base.module)
        return methods, sentinels
