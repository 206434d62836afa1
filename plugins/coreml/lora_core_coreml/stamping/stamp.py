"""Lower a few layers, predict the model's methods from them, and prove it on one more depth."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core_coreml.lowering import inputs
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.inputs import MethodShape
from lora_core_coreml.lowering.methods import MethodLowering
from lora_core_coreml.lowering.program import LoweredProgram
from lora_core_coreml.program.naming import Kind
from lora_core_coreml.stamping.choosing import Chosen, Layers, choose
from lora_core_coreml.stamping.document import StampedMethod, to_document
from lora_core_coreml.stamping.items import Document, NotDerivableError, compared
from lora_core_coreml.stamping.layers import check_layers, kinds_of, with_layers, with_slots
from lora_core_coreml.stamping.prediction import Example, Kinds, predict
from lora_core_coreml.stamping.rebuilding import from_document, table_of
from lora_core_coreml.weightless.program import NotWeightlessError, WeightlessMethods

# Layers of one kind follow from methods of three and four layers, and five prove it.
FEWEST = 3 + 4 + 5 + 1


@attrs.frozen(kw_only=True)
class Choice:
    """The kind of each layer of the model, and the few that are lowered."""

    kinds: Kinds
    chosen: Chosen

    @property
    def lowerings(self) -> int:
        """How many methods are lowered for one."""
        return len(self.chosen.examples) + 1


@attrs.frozen(kw_only=True)
class Stamper:
    """Derives methods of `prepared` from a few of its layers; packages are unpacked under `directory`."""

    job: ExportJob
    prepared: PreparedBase
    directory: Path
    lowering: MethodLowering

    def choice(self, plan: SlotPlan | None) -> Choice | None:
        """Return what to lower for the base's methods, or for the template of `plan`; None if that saves nothing.

        Raises `NotDerivableError` for a model that is no plain sequence of layers.
        """
        module = self.prepared.module
        # The index table of convolutions is not derived.
        if not self.prepared.static or module.params.n_layers < FEWEST or getattr(module, "conv_states", {}):
            return None
        check_layers(self.prepared)
        kinds = kinds_of(self.prepared, plan)
        chosen = choose(kinds)
        return None if chosen is None else Choice(kinds=kinds, chosen=chosen)

    def methods(self, name: Callable[[Kind], str], plan: SlotPlan | None, choice: Choice) -> WeightlessMethods:
        """Return the base's methods, or those of the template of `plan`.

        Raises `NotDerivableError` if they do not follow from a few layers.
        """
        derived = _Derivation(stamper=self, plan=plan, name=name, kinds=choice.kinds, chosen=choice.chosen).run()
        lowered = tuple((kind, method.lowered) for kind, method in derived.items())
        return WeightlessMethods(
            lowered=LoweredProgram(methods=lowered, templates=()),
            origins={method.lowered.name: (method.origins,) for method in derived.values()},
        )


@attrs.frozen(kw_only=True)
class _Derivation:
    stamper: Stamper
    plan: SlotPlan | None
    name: Callable[[Kind], str]
    kinds: Kinds
    chosen: Chosen

    def run(self) -> Mapping[Kind, StampedMethod]:
        """Return the methods by kind; raises `NotDerivableError`."""
        shapes = self.stamper.prepared.shapes
        samples: dict[Kind, list[Example]] = {shape.kind: [] for shape in shapes}
        for layers in self.chosen.examples:
            for shape in shapes:
                _, document = self._lower(layers, shape, {})
                samples[shape.kind].append(Example(self._kinds(layers), document))
        whole = {kind: predict(each, self.kinds) for kind, each in samples.items()}
        constants = self._constants(whole)
        derived = {}
        for shape in shapes:
            proof, document = self._lower(self.chosen.proof, shape, constants)
            self._prove(predict(samples[shape.kind], self._kinds(self.chosen.proof)), document)
            derived[shape.kind] = from_document(whole[shape.kind], proof)
            constants = {}
        return derived

    def _kinds(self, layers: Layers) -> Kinds:
        return tuple(self.kinds[number] for number in layers)

    def _constants(self, whole: Mapping[Kind, Document]) -> Mapping[str, Any]:
        """Return the constant methods of the base, which its first method is lowered with."""
        if self.plan is not None:
            return {}
        prepared = self.stamper.prepared
        tables = {shape.kind: (shape, table_of(whole[shape.kind])) for shape in prepared.shapes}
        return {**prepared.metadata, **inputs.constant_methods(prepared.module, tables, prepared.dtype)}

    def _lower(
        self, layers: Layers, shape: MethodShape, constants: Mapping[str, Any]
    ) -> tuple[StampedMethod, Document]:
        prepared = with_layers(self.stamper.prepared, layers)
        paths = prepared.paths
        plan = with_slots(self.stamper.prepared, self.plan, layers) if self.plan else None
        name = self.name(shape.kind)
        directory = self.stamper.directory / f"{name}_{'_'.join(map(str, layers))}"
        lowered, table = self.stamper.lowering.lower(name, prepared, shape, plan, directory, constants)
        program = LoweredProgram(methods=((shape.kind, lowered),), templates=())
        try:
            origins = WeightlessMethods.strip(program, prepared.module).origins[name]
        except NotWeightlessError as error:
            raise NotDerivableError(str(error)) from error
        if len(origins) != 1 or table is None:
            raise NotDerivableError(f"method {name} is more than one CoreML function")
        method = StampedMethod(lowered=lowered, origins=origins[0], table=table)
        del prepared, program
        # Graphs of torch refer to themselves, so the stand-ins of one method would stay beside those of the next.
        gc.collect()
        return method, to_document(method, paths)

    def _prove(self, predicted: Document, document: Document) -> None:
        ours, theirs = compared(predicted), compared(document)
        wrong = sorted(name for name in theirs if ours.get(name) != theirs[name])
        if wrong:
            depth = len(self.chosen.proof)
            raise NotDerivableError(f"at a depth of {depth} layers these were predicted wrongly: {', '.join(wrong)}")
