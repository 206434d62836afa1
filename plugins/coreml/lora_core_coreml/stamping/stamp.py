"""Lower a few layers, predict the model's methods from them, and prove it on one more depth."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.fast_lowering.cutting import NotAChainError
from lora_core_coreml.lowering import inputs
from lora_core_coreml.lowering.base import PreparedBase
from lora_core_coreml.lowering.inputs import MethodShape
from lora_core_coreml.lowering.methods import MethodLowering, TracedMethod
from lora_core_coreml.lowering.program import LoweredProgram
from lora_core_coreml.program.naming import Kind
from lora_core_coreml.stamping.choosing import Chosen, Layers, among, choose
from lora_core_coreml.stamping.document import StampedMethod, to_document
from lora_core_coreml.stamping.items import Document, NotDerivableError, compared
from lora_core_coreml.stamping.layers import check_layers, kinds_of, with_layers, with_slots, without_layers
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
        derivation = _Derivation(stamper=self, plan=plan, name=name, kinds=choice.kinds, chosen=choice.chosen)
        try:
            derived = derivation.run()
        except NotDerivableError:  # what is traced, and not cut out, may tell more
            derived = attrs.evolve(derivation, cuts=False).run()
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
    cuts: bool = True

    def run(self) -> Mapping[Kind, StampedMethod]:
        """Return the methods by kind; raises `NotDerivableError`."""
        shapes = self.stamper.prepared.shapes
        deepest = {shape.kind: self._trace(self.chosen.proof, shape) for shape in shapes}
        samples = {shape.kind: [*self._samples(shape, deepest[shape.kind])] for shape in shapes}
        whole = {kind: predict(each, self.kinds) for kind, each in samples.items()}
        constants = self._constants(whole)
        derived = {}
        for kind in samples:
            proof, document = self._lower(kind, self.chosen.proof, deepest.pop(kind), constants)
            self._prove(predict(samples[kind], self._kinds(self.chosen.proof)), document)
            derived[kind] = from_document(whole[kind], proof)
            constants = {}
        return derived

    def _samples(self, shape: MethodShape, deepest: TracedMethod) -> Iterator[Example]:
        """Yield the methods to predict from; the first is traced, the others are cut out of the deepest where they can
        be. What a cut kept of the deeper graph by mistake would make both ends disagree.
        """
        for number, layers in enumerate(self.chosen.examples):
            traced = self._cut(layers, deepest) if number and self.cuts else None
            if traced is None:
                traced = self._trace(layers, shape)
            yield Example(self._kinds(layers), self._lower(shape.kind, layers, traced, {})[1])

    def _trace(self, layers: Layers, shape: MethodShape) -> TracedMethod:
        prepared = with_layers(self.stamper.prepared, layers)
        plan = with_slots(self.stamper.prepared, self.plan, layers) if self.plan else None
        return self.stamper.lowering.trace(self.name(shape.kind), prepared, shape, plan)

    def _cut(self, layers: Layers, deepest: TracedMethod) -> TracedMethod | None:
        keep = among(self._kinds(layers), self._kinds(self.chosen.proof))
        try:
            return without_layers(deepest, keep) if keep else None
        except NotAChainError:
            return None

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
        self, kind: Kind, layers: Layers, traced: TracedMethod, constants: Mapping[str, Any]
    ) -> tuple[StampedMethod, Document]:
        prepared, name = traced.prepared, traced.edge.name
        how = "cut" if self.cuts else "traced"
        directory = self.stamper.directory / f"{how}_{name}_{'_'.join(map(str, layers))}"
        lowered = self.stamper.lowering.delegate(traced, directory, constants)
        program = LoweredProgram(methods=((kind, lowered),), templates=())
        try:
            origins = WeightlessMethods.strip(program, prepared.module).origins[name]
        except NotWeightlessError as error:
            raise NotDerivableError(str(error)) from error
        if len(origins) != 1:
            raise NotDerivableError(f"method {name} is more than one CoreML function")
        method = StampedMethod(lowered=lowered, origins=origins[0], table=traced.table)
        del program
        # Graphs of torch refer to themselves, so the stand-ins of one method would stay beside those of the next.
        gc.collect()
        return method, to_document(method, prepared.paths)

    def _prove(self, predicted: Document, document: Document) -> None:
        ours, theirs = compared(predicted), compared(document)
        wrong = sorted(name for name in theirs if ours.get(name) != theirs[name])
        if wrong:
            depth = len(self.chosen.proof)
            raise NotDerivableError(f"at a depth of {depth} layers these were predicted wrongly: {', '.join(wrong)}")
