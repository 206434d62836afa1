"""What a PEFT adapter may hold beside A and B: magnitudes of DoRA, trained biases, whole modules, copies of the base.

What they do is told against the base, so its weights are needed: `gain = m / |W + scaling * B A|` for each row (DoRA,
peft/tuners/lora/dora.py, `DoraLinearLayer.forward`), the difference of biases, the difference of weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np

from lora_core.adapters.adapter import Update
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.peft.derived import BiasShift, DoraGain, GainedRows, WeightDelta
from lora_core.adapters.peft.refusals import MERGE
from lora_core.adapters.peft.spelling import Spelling
from lora_core.errors import Problem
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.tensors import READABLE, LazyTensor, StoredTensor

BaseWeights = Callable[[], Mapping[str, LazyTensor]]
"""Gives the base's stored tensors by name; called only if an adapter needs them."""

_MAGNITUDE = re.compile(r"(?P<stem>.+)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?")
_WHOLE = re.compile(r"(?P<stem>.+?)(?P<copy>\.base_layer)?\.(?P<part>weight|bias)")
SAY_MODEL = "Say `add --model DIR`, the base that the bundle was exported from."
SAVE_AGAIN = "Save the adapter again with save_pretrained(..., save_embedding_layers=False)."
_TRAINED = (
    "If it was trained or resized, the adapter has another base: untie it (clone lm_head, set tie_word_embeddings to "
    "false), merge the adapter, and export that. If not: "
)


@attrs.frozen(kw_only=True)
class TrainedParts:
    """The tensors of a file that are of these features, by module; `unused` are of none."""

    path: Path
    magnitudes: Mapping[str, StoredTensor]
    biases: Mapping[str, StoredTensor]
    weights: Mapping[str, StoredTensor]
    unused: tuple[StoredTensor, ...]
    dora: bool

    @classmethod
    def of(
        cls, path: Path, tensors: Sequence[StoredTensor], base: ModelSummary, *, dora: bool, biases: bool
    ) -> TrainedParts:
        """Sort `tensors`, those that are no factor of a pair; `dora` and `biases` say what the configuration allows."""
        spelling, layers = Spelling.of(base.module_names), {layer.name for layer in base.layers}
        found: dict[str, dict[str, StoredTensor]] = {"magnitude": {}, "bias": {}, "weight": {}}
        unused = []
        for tensor in tensors:
            magnitude, whole = _MAGNITUDE.fullmatch(tensor.name), _WHOLE.fullmatch(tensor.name)
            match = magnitude or whole
            module = spelling.module(match["stem"]) if match is not None else ""
            part = "magnitude" if magnitude else whole["part"] if whole else ""
            allowed = {"magnitude": dora, "bias": biases, "weight": True, "": False}[part]
            if not allowed or module not in layers or module in found[part] or "lora_" in module:
                unused.append(tensor)
            else:
                found[part][module] = tensor
        return cls(
            path=path,
            magnitudes=found["magnitude"],
            biases=found["bias"],
            weights=found["weight"],
            unused=tuple(unused),
            dora=dora,
        )

    def updates(
        self,
        pairs: Sequence[Update],
        base: ModelSummary,
        weights: BaseWeights | None,
        *,
        saved: Sequence[str],
        strength: float,
    ) -> tuple[tuple[Update, ...], tuple[Problem, ...]]:
        """Return all updates, those of `pairs` among them as these features change them, and every problem.

        `saved` are the modules that the configuration saves whole; another weight is a copy of the base's or wrong.
        """
        missing = self._without_base(saved) if weights is None else None
        problems = [*self._misshapen(base), *self._half(pairs)]
        if missing is not None:
            problems.append(missing)
        if problems or weights is None:
            return tuple(pairs), tuple(problems)
        if not (self.magnitudes or self.biases or self.weights):
            return tuple(pairs), ()
        stored = weights()
        problems += self._changed_copies(stored, base, saved)
        layers = {layer.name: layer for layer in base.layers}
        found = {update.module: update for update in pairs}
        updates: list[Update] = []
        for module in sorted({*found, *self.biases, *saved}, key=natural_key):
            pair, layer = found.get(module), layers[module]
            updates += _updates_of(module, pair, layer, self, stored, whole=module in saved, strength=strength)
        return tuple(updates), tuple(problems)

    def _without_base(self, saved: Sequence[str]) -> Problem | None:
        copies = {module: tensor for module, tensor in self.weights.items() if module not in saved}
        for present, what, remedy in (
            (self.magnitudes, "It is a DoRA adapter, whose gains are computed from the base's weights", SAY_MODEL),
            (self.biases, "It trained biases, which are told as what they add to the base's", SAY_MODEL),
            (
                copies,
                "This looks like a copy of base weights",
                f"{SAVE_AGAIN} To have it compared instead: {SAY_MODEL}",
            ),
            (self.weights, "It trained whole weights, which are told as what they add to the base's", SAY_MODEL),
        ):
            if present:
                tensor = next(iter(present.values()))
                return Problem(what=what, where=f"{self.path}: {tensor.name}", remedy=remedy)
        return None

    def _half(self, pairs: Sequence[Update]) -> Iterator[Problem]:
        """Yield the modules that have a magnitude or a pair, where DoRA needs both."""
        odd = self.magnitudes.keys() ^ {pair.module for pair in pairs} if self.dora else ()
        for module in sorted(odd):
            what = f"DoRA needs A, B and a magnitude of {module}, and one of them is missing"
            yield Problem(what=what, where=str(self.path), remedy="Save the adapter again.")

    def _misshapen(self, base: ModelSummary) -> Iterator[Problem]:
        layers = {layer.name: layer for layer in base.layers}
        for part, tensors in (("vector", self.magnitudes), ("vector", self.biases), ("weight", self.weights)):
            for module, tensor in tensors.items():
                layer = layers[module]
                matrix = (layer.out_features, layer.in_features)
                matrix = matrix if layer.kind == "linear" else matrix[::-1]
                wanted = matrix if part == "weight" else (layer.out_features,)
                if tuple(size for size in tensor.shape if size != 1 or part == "weight") != wanted:
                    what = f"Its shape {list(tensor.shape)} does not fit {module}, which needs {list(wanted)}"
                    remedy = "Was the adapter trained for another base, or its vocabulary resized?"
                    yield Problem(what=what, where=f"{self.path}: {tensor.name}", remedy=remedy)
                elif tensor.dtype not in READABLE:
                    what = f"Its type is {tensor.dtype}; lora-core reads {', '.join(READABLE)}"
                    yield Problem(what=what, where=f"{self.path}: {tensor.name}")

    def _changed_copies(
        self, stored: Mapping[str, LazyTensor], base: ModelSummary, saved: Sequence[str]
    ) -> Iterator[Problem]:
        """Yield the stored weights that nothing trained and that are not the base's."""
        for module, tensor in self.weights.items():
            if module in saved:
                continue
            if not np.array_equal(tensor.read(), stored[f"{base.layer(module).tied_to or module}.weight"].read()):
                what = "This is a copy of base weights, and is not what the base has"
                yield Problem(what=what, where=f"{self.path}: {tensor.name}", remedy=_TRAINED + SAVE_AGAIN)


def _updates_of(
    module: str,
    pair: Update | None,
    layer: LayerInfo,
    parts: TrainedParts,
    stored: Mapping[str, LazyTensor],
    *,
    whole: bool,
    strength: float,
) -> Iterator[Update]:
    """Yield the updates of one module: its gain, its pair, its shift, its difference, as far as it has them."""
    weight = stored[f"{layer.tied_to or module}.weight"]
    gain: DoraGain | None = None
    if pair is not None and module in parts.magnitudes:
        gain = DoraGain(
            stored=parts.magnitudes[module],
            weight=weight,
            a=pair.tensors["a"],
            b=pair.tensors["b"],
            scaling=pair.scaling * strength,
        )
        yield Update(module=module, kind="gain", tensors={"gain": gain}, scaling=1.0)
        rows = GainedRows(stored=pair.tensors["b"], gain=gain)
        yield attrs.evolve(pair, tensors={**pair.tensors, "b": rows})
    elif pair is not None:
        yield pair
    bias = stored.get(f"{module}.bias")
    shifted = parts.biases.get(module, bias if gain is not None else None)
    if shifted is not None:
        shift = BiasShift(stored=shifted, bias=bias, gain=gain, width=layer.out_features)
        yield Update(module=module, kind="shift", tensors={"shift": shift}, scaling=1.0)
    if whole:
        delta = WeightDelta(stored=parts.weights[module], weight=weight)
        yield Update(module=module, kind="dense", tensors={"delta": delta}, scaling=1.0)


def saved_modules(
    names: Sequence[str], base: ModelSummary, parts: TrainedParts, where: str
) -> tuple[tuple[str, ...], tuple[Problem, ...]]:
    """Return the modules that `modules_to_save` means, and a problem for each that cannot be had."""
    found, problems = [], []
    for name in names:
        modules = [each for each in base.module_names if each == name or each.endswith(f".{name}")]
        linear = [layer.name for layer in base.layers if layer.name in modules and layer.kind == "linear"]
        if not modules:
            what = f"It saves module {name!r}, which base model {base.name!r} does not have"
            problems.append(Problem(what=what, where=where))
        elif len(linear) < len(modules):
            what = f"It saves whole modules ({name}) that are no linear layers, which is not supported"
            problems.append(Problem(what=what, where=where, remedy=f"{MERGE}, or train without modules_to_save."))
        else:
            found += linear
    for module in found:
        if module not in parts.weights:
            what = f"It saves module {module!r}, but there is no weight for it"
            problems.append(Problem(what=what, where=where, remedy="Save the adapter again."))
    return tuple(found), tuple(problems)
