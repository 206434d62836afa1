"""All methods of an export, lowered one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.layers import ModelSummary
from lora_core.models.injection import eject
from lora_core.models.tracing import tracing
from lora_core_coreml.lowering import inputs
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.inputs import MethodShape
from lora_core_coreml.lowering.method import LoweredMethod, export_method, lower_method
from lora_core_coreml.lowering.program import LoweredProgram, Methods
from lora_core_coreml.lowering.sentinels import Sentinels, attach

_STAGE = "lower methods"


def lower_all(job: ExportJob, prepared: PreparedBase, directory: Path, emit: Emit) -> LoweredProgram:
    """Lower the methods of `prepared` and a template for each plan of `job`; their packages stay under `directory`."""
    with stage(emit, _STAGE):
        total = len(prepared.shapes) * (1 + len(job.plans))
        lowering = _Lowering(job.model.summary, prepared, directory, emit, total)
        return LoweredProgram(
            methods=lowering.base(), templates=tuple(lowering.template(*each) for each in enumerate(job.plans))
        )


class _Lowering:
    """Lowers the methods of one base, one after the other, so that only one is in memory."""

    def __init__(self, model: ModelSummary, prepared: PreparedBase, directory: Path, emit: Emit, total: int) -> None:
        self._model = model
        self._base = prepared
        self._directory = directory
        self._emit = emit
        self._total = total
        self._done = 0

    def base(self) -> Methods:
        exported = {shape.kind: (shape, self._export(shape)) for shape in self._base.shapes}
        constants = dict(self._base.metadata)
        if self._base.static:
            constants |= inputs.constant_methods(self._base.module, exported, self._base.dtype)
        methods = []
        for kind, (_, program) in exported.items():
            methods.append((kind, self._lower(kind, program, constants, {})))
            constants = {}
        return tuple(methods)

    def template(self, number: int, plan: SlotPlan) -> Methods:
        sentinels = attach(self._base.module, plan, self._base.paths, float16=self._base.float16)
        try:
            return tuple(
                (shape.kind, self._lower(f"template{number}_{shape.kind}", self._export(shape), {}, sentinels))
                for shape in self._base.shapes
            )
        finally:
            eject(self._base.module)

    def _export(self, shape: MethodShape) -> torch.export.ExportedProgram:
        with tracing(self._model):
            return export_method(self._base.module, self._base.inputs(shape))

    def _lower(
        self, name: str, program: torch.export.ExportedProgram, constants: Mapping[str, Any], sentinels: Sentinels
    ) -> LoweredMethod:
        lowered = lower_method(
            name, program, self._directory, float16=self._base.float16, constants=constants, sentinels=sentinels
        )
        self._done += 1
        self._emit(StageAdvanced(stage=_STAGE, done=self._done, total=self._total))
        return lowered
