"""What a PEFT adapter may hold beside A and B: magnitudes of DoRA, biases, whole modules, tokens, copies of the base.

What they do is told against the base, so its weights are needed: `gain = m / |W + scaling * B A|` for each row (DoRA,
peft/tuners/lora/dora.py, `DoraLinearLayer.forward`), the difference of biases, the difference of weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.adapter import Update
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.peft.spelling import Spelling
from lora_core.errors import Problem
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.tensors import READABLE, LazyTensor, StoredTensor

if TYPE_CHECKING:
    from lora_core.adapters.peft.derived import DoraGain

BaseWeights = Callable[[], Mapping[str, LazyTensor]]
"""Gives the base's stored tensors by name; called only if an adapter needs them."""

_MAGNITUDE = re.compile(r"(?P<stem>.+)\.lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?")
_TOKENS = re.compile(r"(?P<stem>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
_WHOLE = re.compile(r"(?P<stem>.+?)(?P<copy>\.base_layer)?\.(?P<part>weight|bias)")
SAY_MODEL = "Say `add --model DIR`, the base that the bundle was exported from."
SAVE_AGAIN = "Save the adapter again with save_pretrained(..., save_embedding_layers=False)."
_TRAINED = (
    "If it was trained or resized, the adapter has another base: untie it (clone lm_head, set tie_word_embeddings to "
    "false), merge the adapter, and export that. If not: "
)


@attrs.frozen(kw_only=True)
class Wanted:
    """The modules that the configuration saves whole, and the trained tokens of each module that has some.

    `tied` are output heads whose tokens are those of the embedding, which alone has tensors.
    """

    saved: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    tied: Mapping[str, str]


@attrs.frozen(kw_only=True)
class TrainedParts:
    """The tensors of a file that are of these features, by module; `unused` are of none."""

    path: Path
    magnitudes: Mapping[str, StoredTensor]
    biases: Mapping[str, StoredTensor]
    weights: Mapping[str, StoredTensor]
    tokens: Mapping[str, StoredTensor]
    unused: tuple[StoredTensor, ...]
    dora: bool

    @classmethod
    def of(
        cls,
        path: Path,
        tensors: Sequence[StoredTensor],
        base: ModelSummary,
        *,
        dora: bool,
        biases: bool,
        tokens: bool,
        saved: Sequence[str] = (),
    ) -> TrainedParts:
        """Sort `tensors`, those that are no factor of a pair; the flags say what the configuration allows, `saved` of
        which modules it saves the whole, biases too.
        """
        spelling, layers = Spelling.of(base.module_names), {layer.name for layer in base.layers}
        found: dict[str, dict[str, StoredTensor]] = {"magnitude": {}, "bias": {}, "weight": {}, "tokens": {}}
        unused = []
        for tensor in tensors:
            part, match = _part(tensor.name)
            module = spelling.module(match["stem"]) if match is not None else ""
            whole = any(module.endswith(name) for name in saved)
            allowed = {"magnitude": dora, "bias": biases or whole, "weight": True, "tokens": tokens, "": False}[part]
            if not allowed or module not in layers or module in found[part] or "lora_" in module:
                unused.append(tensor)
            else:
                found[part][module] = tensor
        return cls(
            path=path,
            magnitudes=found["magnitude"],
            biases=found["bias"],
            weights=found["weight"],
            tokens=found["tokens"],
            unused=tuple(unused),
            dora=dora,
        )

    def updates(
        self,
        pairs: Sequence[Update],
        base: ModelSummary,
        weights: BaseWeights | None,
        wanted: Wanted,
        *,
        strength: float,
    ) -> tuple[tuple[Update, ...], tuple[Problem, ...]]:
        """Return all updates, those of `pairs` among them as these features change them, and every problem.

        A weight of a module that is not saved whole is a copy of the base's or wrong.
        """
        saved = wanted.saved
        missing = self._without_base(saved) if weights is None else None
        problems = [*self._misshapen(base), *self._half(pairs)]
        if missing is not None:
            problems.append(missing)
        if problems or weights is None:
            return tuple(pairs), tuple(problems)
        if not (self.magnitudes or self.biases or self.weights or self.tokens):
            return tuple(pairs), ()
        from lora_core.adapters.peft.token_rows import tokens_update  # few adapters have any of it

        stored = weights()
        problems += self._changed_copies(stored, base, saved)
        layers = {layer.name: layer for layer in base.layers}
        found = {update.module: update for update in pairs}
        updates: list[Update] = []
        for module in sorted({*found, *self.biases, *saved, *wanted.tokens, *wanted.tied}, key=natural_key):
            pair, layer = found.get(module), layers[module]
            updates += _updates_of(module, pair, layer, self, stored, whole=module in saved, strength=strength)
            source = wanted.tied.get(module, module)
            if source in wanted.tokens:
                trained, weight = self.tokens[source], stored[f"{layer.tied_to or module}.weight"]
                updates.append(tokens_update(layer, wanted.tokens[source], trained, weight))
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
            (self.tokens, "It trained tokens, which are told as what they add to the base's rows", SAY_MODEL),
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


def _part(name: str) -> tuple[str, re.Match[str] | None]:
    """Return which part of which module a tensor called `name` is; nothing if it is none of them."""
    if (match := _MAGNITUDE.fullmatch(name)) is not None:
        return "magnitude", match
    if (match := _TOKENS.fullmatch(name)) is not None:
        return "tokens", match
    match = _WHOLE.fullmatch(name)
    return (match["part"], match) if match is not None else ("", None)


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
    from lora_core.adapters.peft.derived import BiasShift, DoraGain, GainedRows, WeightDelta

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
        kind = "rows" if layer.kind == "embedding" else "dense"
        yield Update(module=module, kind=kind, tensors={"delta": delta}, scaling=1.0)
