"""How far an adapter can make up for the 4 bits of its base: divergence before and after fitting A and B.

    python benchmarks/fitted_adapter.py MODEL ADAPTER [--rank N ...] [--compensated] [--how weights]

Weights as `four_bits.py` has them, without a runtime. At each slot, in the order of the layers, A and B become those of
their rank that least squares choose for the inputs of calibration texts, in closed form (reduced-rank regression):

- `weights`: B'A' nearest to W + BA - Q, Q being the rounded weight, in the metric of the inputs that the rounded model
  gives the layer: what `lora-core fit-adapter` does;
- `outputs`: the outputs of the layer nearest to those that it has in full precision with the adapter, so that errors of
  the inputs are made up for too (ridge of 1 % of the mean square).

Prints KL divergence of all next tokens of TEXT (mean, median) from full precision with the adapter, agreement of the
most likely one, and the CPU seconds of fitting.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from four_bits import EMBEDDING, GRID, HEAD, LONGEST_PROMPT, TEXT, eight_bits, log_probabilities, restored
from tokenizers import Tokenizer

from lora_core.adapters.peft.format import PeftFormat
from lora_core.events import ignore
from lora_core.models.base import ModelHandle
from lora_core.models.hf import HfModelSource
from lora_core.preparation.decoder import CalibratedDecoder
from lora_core.preparation.fitted_updates import nearest
from lora_core.preparation.prompts import calibration_prompts
from lora_core.preparation.rounded import decoder_of, round_layers
from lora_core.quant.fitting import fitted

Array = Any
Visit = Callable[[str, Array, Array], Array]
HOW = ("weights", "outputs")
_RIDGE = 0.01


@attrs.frozen
class Runner:
    """Runs a base on texts with other weights in its linear layers."""

    model: ModelHandle
    head: Array

    def run(self, prompts: Sequence[Array], visit: Visit) -> Array:
        architecture, _ = decoder_of(self.model.summary)
        decoder = CalibratedDecoder.over(architecture, self.model.tensors(), prompts, visit)
        return decoder.run(prompts)

    def log_probabilities(self, prompts: Sequence[Array], visit: Visit, *, exact: bool) -> Array:
        return log_probabilities(self.run(prompts, visit) @ (self.head if exact else eight_bits(self.head)).T)


def projected(delta: Array, inputs: Array, rank: int) -> Array:
    """Return the matrix of `rank` whose products with `inputs` (tokens, in) are nearest to those of `delta`."""
    a, b, _ = nearest(delta, inputs, rank)
    return b.astype(np.float64) @ a


def regressed(target: Array, inputs: Array, start: Array, rank: int) -> Array:
    """Return the matrix of `rank` whose products with `inputs` are nearest to `target`; the ridge pulls to `start`."""
    moment = inputs.T @ inputs
    moment += np.eye(len(moment)) * (_RIDGE * np.trace(moment) / len(moment))
    better = start + np.linalg.solve(moment, inputs.T @ (target - inputs @ start.T)).T
    return projected(better, inputs, rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--rank", type=int, nargs="*", default=[0], help="0: that of each slot (default)")
    parser.add_argument("--compensated", action="store_true")
    parser.add_argument("--how", nargs="*", choices=HOW, default=HOW)
    chosen = parser.parse_args()
    model = HfModelSource().open(str(chosen.model))
    adapter = PeftFormat().read("adapter", chosen.adapter, model.summary)
    updates = {
        each.module: (each.tensors["a"].read(), each.scaling * each.tensors["b"].read()) for each in adapter.updates
    }
    deltas = {module: b.astype(np.float64) @ a for module, (a, b) in updates.items()}
    tokenizer = Tokenizer.from_file(str(chosen.model / "tokenizer.json"))
    texts = [np.asarray(tokenizer.encode(text).ids, np.int64) for text in TEXT]
    rows = next(layer.in_features for layer in model.summary.layers if layer.kind == "embedding")
    prompts = calibration_prompts(None, model.tokenizer, rows, LONGEST_PROMPT)
    tensors = model.tensors()
    runner = Runner(model, tensors[HEAD if HEAD in tensors else EMBEDDING].read().astype(np.float64))
    names = [layer.name for layer in model.summary.layers if layer.kind == "linear" and not layer.is_output]

    def full(name: str, _inputs: Array, weight: Array) -> Array:
        return weight + deltas.get(name, 0.0)

    exact = runner.log_probabilities(texts, full, exact=True)

    def told(what: str, own: Mapping[str, Array], base: Mapping[str, Array], seconds: float) -> None:
        found = runner.log_probabilities(texts, lambda name, _i, _w: base[name] + own.get(name, 0.0), exact=False)
        divergences = (np.exp(exact) * (exact - found)).sum(axis=1)
        equal = (exact.argmax(axis=1) == found.argmax(axis=1)).mean()
        print(
            f"| {what} | {divergences.mean():.3f} ({np.median(divergences):.3f}) | {equal:.1%} | {seconds:.0f} |",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as work:
        if chosen.compensated:
            kept = round_layers(model, dict.fromkeys(names, GRID), prompts, Path(work), ignore)
            base = {name: restored(kept.rows(name, 0)) for name in names}
        else:
            base = {name: restored(fitted(tensors[f"{name}.weight"].read(), GRID)) for name in names}
    outputs: dict[str, Array] = {}

    def observed(name: str, inputs: Array, weight: Array) -> Array:
        if name in deltas:
            outputs[name] = (inputs @ full(name, inputs, weight).T).astype(np.float32)
        return full(name, inputs, weight)

    runner.run(prompts, observed)
    print(f"{len(updates)} slots, {sum(map(len, prompts))} calibration tokens, {sum(map(len, texts))} of text")
    print("| A and B | KL | top-1 | CPU s |\n|---|---|---|---|", flush=True)
    told("as they are", deltas, base, 0)
    for rank in chosen.rank:
        for how in chosen.how:
            start, own = time.process_time(), {}

            def fit(
                name: str, inputs: Array, weight: Array, how: str = how, rank: int = rank, own: dict = own
            ) -> Array:
                if name in deltas:
                    delta, size = weight + deltas[name] - base[name], rank or len(updates[name][0])
                    if how == "weights":
                        own[name] = projected(delta, inputs, size)
                    else:
                        target = outputs[name] - inputs @ base[name].T
                        own[name] = regressed(target, inputs, delta, size)
                return base[name] + own.get(name, 0.0)

            runner.run(prompts, fit)
            told(f"{how}, rank {rank or 'of the adapter'}", own, base, time.process_time() - start)


if __name__ == "__main__":
    main()
