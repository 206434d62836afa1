"""All methods of an export, lowered one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.layers import ModelSummary
from lora_core.models.injection import eject
from lora_core.models.tracing import tracing
from lora_core_coreml.lowering import inputs
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.inputs import IndexTable, MethodShape
from lora_core_coreml.lowering.method import (
    EdgeMethod,
    LoweredMethod,
    delegate_method,
    export_method,
    lower_method,
    trace_method,
)
from lora_core_coreml.lowering.program import LoweredProgram, Methods, template_name
from lora_core_coreml.lowering.sentinels import Sentinels, attach


@attrs.frozen(kw_only=True)
class TracedMethod:
    """A method of static attention, traced and not yet delegated, of the module in `prepared`, which is as it was
    before its slots were filled with `sentinels`.
    """

    edge: EdgeMethod
    prepared: PreparedBase
    sentinels: Sentinels

    @property
    def table(self) -> IndexTable:
        """Where the method's inputs and outputs are."""
        return inputs.index_table(self.edge.program)


@attrs.frozen(kw_only=True)
class MethodLowering:
    """Lowers methods of `model`, and tells `advanced` of each."""

    model: ModelSummary
    advanced: Callable[[], None]

    def export(self, prepared: PreparedBase, shape: MethodShape) -> torch.export.ExportedProgram:
        """Return a method as torch's exported program."""
        with tracing(self.model):
            return export_method(prepared.module, prepared.inputs(shape))

    def trace(self, name: str, prepared: PreparedBase, shape: MethodShape, plan: SlotPlan | None) -> TracedMethod:
        """Trace one method of static attention, with sentinels in the slots of `plan`."""
        with _attached(prepared, plan) as sentinels:
            edge = trace_method(name, self.export(prepared, shape), float16=prepared.float16)
        return TracedMethod(edge=edge, prepared=prepared, sentinels=sentinels)

    def delegate(self, traced: TracedMethod, directory: Path, constants: Mapping[str, Any]) -> LoweredMethod:
        """Lower a traced method."""
        lowered = delegate_method(traced.edge, directory, constants=constants, sentinels=traced.sentinels)
        self.advanced()
        return lowered

    def lower(
        self, name: str, prepared: PreparedBase, shape: MethodShape, plan: SlotPlan, directory: Path
    ) -> LoweredMethod:
        """Lower one method, with sentinels in the slots of `plan`."""
        with _attached(prepared, plan) as sentinels:
            exported = self.export(prepared, shape)
            lowered = lower_method(name, exported, directory, float16=prepared.float16, sentinels=sentinels)
        self.advanced()
        return lowered


@contextmanager
def _attached(prepared: PreparedBase, plan: SlotPlan | None) -> Iterator[Sentinels]:
    sentinels = attach(prepared.module, plan, prepared.paths, float16=prepared.float16) if plan else {}
    try:
        yield sentinels
    finally:
        eject(prepared.module)


def lower_all(job: ExportJob, prepared: PreparedBase, directory: Path, advanced: Callable[[], None]) -> LoweredProgram:
    """Lower the methods of `prepared` and a template for each plan of `job`; their packages stay under `directory`."""
    return LoweredProgram(
        methods=base_methods(job, prepared, directory, advanced),
        templates=tuple(
            template_methods(job, prepared, directory, advanced, number) for number in range(len(job.plans))
        ),
    )


def base_methods(job: ExportJob, prepared: PreparedBase, directory: Path, advanced: Callable[[], None]) -> Methods:
    """Lower the base's methods; the first of them has the constant methods beside it."""
    lowering = MethodLowering(model=job.model.summary, advanced=advanced)
    constants = dict(prepared.metadata)
    exported = {shape.kind: (shape, lowering.export(prepared, shape)) for shape in prepared.shapes}
    if prepared.static:
        tables = {kind: (shape, inputs.index_table(program)) for kind, (shape, program) in exported.items()}
        constants |= inputs.constant_methods(prepared.module, tables, prepared.dtype)
    methods = []
    for kind, (_, program) in exported.items():
        methods.append((kind, lower_method(kind, program, directory, float16=prepared.float16, constants=constants)))
        advanced()
        constants = {}
    return tuple(methods)


def template_methods(
    job: ExportJob, prepared: PreparedBase, directory: Path, advanced: Callable[[], None], number: int
) -> Methods:
    """Lower the methods of the template for plan `number`."""
    lowering = MethodLowering(model=job.model.summary, advanced=advanced)
    plan = job.plans[number]
    return tuple(
        (shape.kind, lowering.lower(template_name(number, shape.kind), prepared, shape, plan, directory))
        for shape in prepared.shapes
    )
