"""Lower with stand-ins for the base's weights: a few layers where the rest follows from them, else all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import Emit, Noted, StageAdvanced, stage
from lora_core.fast_lowering import old_objects_spared
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.methods import MethodLowering, base_methods, lower_all, template_methods
from lora_core_coreml.lowering.program import LoweredProgram, Methods, names_of_groups
from lora_core_coreml.program.naming import Kind
from lora_core_coreml.stamping.items import NotDerivableError
from lora_core_coreml.stamping.stamp import Choice, Stamper
from lora_core_coreml.weightless.program import NotWeightlessError, WeightlessMethods, check_told_apart
from lora_core_coreml.weightless.rows import one_row_each
from lora_core_coreml.weightless.standins import with_stand_ins

_STAGE = "lower methods"


@attrs.define(kw_only=True)
class StandInLowering:
    """Lowers the methods of `job`; packages are unpacked under `directory`."""

    job: ExportJob
    prepared: PreparedBase
    directory: Path
    emit: Emit
    _done: int = attrs.field(default=0, init=False)
    _total: int = attrs.field(default=0, init=False)

    def with_weights(self, held: PreparedBase) -> LoweredProgram:
        """Lower everything with the base's own weights, which `held` has."""
        self._done, self._total = 0, len(self.prepared.shapes) * (1 + len(self.job.plans))
        with stage(self.emit, _STAGE):
            return lower_all(self.job, held, self.directory / "own", self._advanced)

    def weightless(
        self, known: Sequence[WeightlessMethods | None], *, always: bool
    ) -> Sequence[WeightlessMethods] | None:
        """Return the base's methods and those of each template, lowered with stand-ins where they are not `known`.

        None if methods depend on weights, which is noted, or if nothing follows from a few layers and it need not be
        weightless `always`. What does not follow from a few layers is noted, and lowered in full.
        """
        try:
            return self._weightless(known, always=always)
        except NotWeightlessError as error:
            self.emit(Noted(message=f"The base is held whole, as its lowered methods depend on its weights: {error}"))
            return None

    def _weightless(
        self, known: Sequence[WeightlessMethods | None], *, always: bool
    ) -> Sequence[WeightlessMethods] | None:
        plans = (None, *self.job.plans)
        choices = [self._choice(plan) if group is None else None for plan, group in zip(plans, known, strict=True)]
        if not always and not any(choices):
            return None
        check_told_apart(self.prepared.module)
        pairs = zip(choices, known, strict=True)
        methods = sum(each.lowerings if each else 1 for each, group in pairs if group is None)
        self._total = len(self.prepared.shapes) * methods
        with stage(self.emit, _STAGE), one_row_each(), old_objects_spared():
            names = names_of_groups(len(self.job.plans))
            stamped = [
                self._stamped(plan, name, choice) if group is None else group
                for plan, name, choice, group in zip(plans, names, choices, known, strict=True)
            ]
            return self._completed(stamped) if always or any(stamped) else None

    @property
    def _stamper(self) -> Stamper:
        lowering = MethodLowering(model=self.job.model.summary, advanced=self._advanced)
        return Stamper(job=self.job, prepared=self.prepared, directory=self.directory / "few", lowering=lowering)

    def _choice(self, plan: SlotPlan | None) -> Choice | None:
        try:
            return self._stamper.choice(plan)
        except NotDerivableError as error:
            self._tell(plan, error)
            return None

    def _stamped(
        self, plan: SlotPlan | None, name: Callable[[Kind], str], choice: Choice | None
    ) -> WeightlessMethods | None:
        try:
            return self._stamper.methods(name, plan, choice) if choice else None
        except NotDerivableError as error:
            self._tell(plan, error)
            return None

    def _tell(self, plan: SlotPlan | None, error: NotDerivableError) -> None:
        what = "The base" if plan is None else "A template"
        self.emit(Noted(message=f"{what} is lowered layer by layer, as it does not follow from a few: {error}"))

    def _completed(self, stamped: list[WeightlessMethods | None]) -> Sequence[WeightlessMethods]:
        """Return all methods, those that were not stamped lowered in full; raises `NotWeightlessError`."""
        if all(stamped):
            return [each for each in stamped if each]
        whole = attrs.evolve(self.prepared, module=with_stand_ins(self.prepared.module))
        directory = self.directory / "stand-ins"
        groups = []
        for number, each in enumerate(stamped, start=-1):
            if each is None:
                methods: Methods
                if number < 0:
                    methods = base_methods(self.job, whole, directory, self._advanced)
                else:
                    methods = template_methods(self.job, whole, directory, self._advanced, number)
                each = WeightlessMethods.strip(LoweredProgram(methods=methods, templates=()), whole.module)
            groups.append(each)
        return groups

    def _advanced(self) -> None:
        self._done += 1
        self._total = max(self._total, self._done)
        self.emit(StageAdvanced(stage=_STAGE, done=self._done, total=self._total))
