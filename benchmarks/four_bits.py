"""What 4-bit weights cost by how they are rounded: divergence from full precision, without a runtime.

    python benchmarks/four_bits.py build/models/SmolLM2-135M-Instruct [--rotated | --stored coreml|onnx|xnnpack]
    python benchmarks/four_bits.py build/models/SmolLM2-135M-Instruct --bundle DIR ...

The linear layers of a Llama-like checkpoint in groups of 32 with bfloat16 scales and a head of 8 bits, as 8da4w stores
them, but activations are not rounded. Base and rounded base run on TEXT in float64 (`lora_core.preparation.decoder`).
Prints a row as soon as it is known: KL divergence of all next tokens (mean, median), agreement of the most likely
token, and the CPU seconds of rounding all linear layers (OMP_NUM_THREADS=1 for those of one thread). With `--rotated`
the residual stream is turned first, as the simulator turns it (gains folded, head and embedding two matrices). With
`--stored` the rows are policies of a backend, with the weights that it says its programs have (`Backend.rounding`),
head and embedding as they are stored, and the bytes of all of these. With `--bundle` the rows are bundles of the model,
run on their own runtime token by token, and the bytes are those of their base: every file but adapters and manifest.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from tokenizers import Tokenizer

import lora_core
from lora_core.backend import ExportJob
from lora_core.bundle.store import open_bundle
from lora_core.events import ignore
from lora_core.hub import PluginHub
from lora_core.layers import ModelSummary
from lora_core.models.base import ModelHandle
from lora_core.models.hf import HfModelSource
from lora_core.preparation.decoder import CalibratedDecoder
from lora_core.preparation.prompts import calibration_prompts
from lora_core.preparation.rounded import decoder_of, round_layers
from lora_core.quant.fitting import Grid, bfloat16, fitted
from lora_core.quant.policies import parse_policy
from lora_core.quant.policy import Scheme

Array = Any
Rounded = tuple[Array, Array]
"""Integers (rows, inputs) and scales (rows, groups)."""

GRID = Grid(lowest=-8, highest=7, group=32, narrow=bfloat16)
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
LONGEST_PROMPT = 512
STORED: Mapping[str, tuple[tuple[str, str | None, Mapping[str, str]], ...]] = {
    "coreml": (
        ("c4w", "4,0", {}),
        ("c4w", None, {}),
        ("c4w", None, {"rounding": "importance"}),
        ("c4w", None, {"rounding": "compensated"}),
        ("b4w", "4,32", {}),
        ("b4w", None, {}),
        ("b4w", None, {"rounding": "importance"}),
        ("b4w", None, {"rounding": "compensated"}),
    ),
    "onnx": tuple(("4w", None, options) for options in ({}, {"rounding": "importance"}, {"rounding": "compensated"})),
    "xnnpack": tuple(
        ("8da4w", None, options) for options in ({}, {"rounding": "importance"}, {"rounding": "compensated"})
    ),
}
"""What `--stored` measures: policies with heads and export options."""
SCALE_BYTES = {"coreml": 2, "onnx": 4, "xnnpack": 2}
FACTORS = np.linspace(0.75, 1.15, 21, dtype=np.float32)
"""Of the scale by range; the best of them is the scale with the least squared error."""
TEXT = (
    "The harbour was quiet when the ferry came in, later than anyone had expected, with its lights already lit and its "
    "decks wet from the rain that had followed it all the way from the islands. Two men stood on the quay and waited "
    "for the rope. Behind them, in the window of the ticket office, a clock that had stopped years ago still said "
    "twenty to four, and nobody had thought of taking it down. A woman with a grey suitcase was the first to leave the "
    "ship. She looked around as if she knew the place, and then as if she did not, and at last she walked towards the "
    "only café that was open.",
    "Photosynthesis is the process by which green plants, algae and some bacteria turn light into chemical energy. In "
    "the leaves, chlorophyll absorbs mostly red and blue light, and the energy is used to split water into oxygen, "
    "which is released, and hydrogen, which is kept. In a second series of reactions, carbon dioxide from the air is "
    "bound and reduced to sugar. The rate at which this happens depends on the amount of light, on temperature, and on "
    "how much water and carbon dioxide the plant can get.",
    "<|im_start|>user\nHow can I keep bread fresh for longer?<|im_end|>\n<|im_start|>assistant\nThere are a few simple "
    "ways to keep bread fresh for longer. Store it in a paper bag or a bread box at room temperature, away from direct "
    "sunlight. If you do not plan to eat it within two or three days, slice it and freeze it in an airtight bag. Avoid "
    "the refrigerator, because cold air makes bread go stale more quickly.<|im_end|>\n",
)


def by_range(weight: Array) -> Rounded:
    """Round as `--scale-search affine`: the scale follows from the largest weight, and is narrowed as it is stored."""
    scales = np.maximum(np.abs(weight).reshape(len(weight), -1, GRID.group).max(axis=2) / np.float32(7.5), 1e-9)
    integers = GRID.integers(weight.reshape(*scales.shape, GRID.group), scales)
    return integers.astype(np.int8).reshape(weight.shape), bfloat16(scales)


def least_squares(weight: Array) -> Rounded:
    """Round at the scale of each group that has the least squared error."""
    groups = weight.reshape(-1, GRID.group)
    by_range = np.maximum(np.abs(groups).max(axis=1) / np.float32(7.5), 1e-9)
    scales, least = by_range, np.full(len(groups), np.inf, np.float32)
    for factor in FACTORS:
        tried = bfloat16(by_range * factor)
        error = np.square(GRID.integers(groups, tried) * tried[:, None] - groups).sum(axis=1)
        scales, least = np.where(error < least, tried, scales), np.minimum(error, least)
    return GRID.integers(groups, scales).astype(np.int8).reshape(weight.shape), scales.reshape(len(weight), -1)


def restored(rounded: Rounded) -> Array:
    integers, scales = rounded
    return (integers.reshape(*scales.shape, -1) * scales[..., None].astype(np.float64)).reshape(integers.shape)


def eight_bits(weight: Array) -> Array:
    scales = np.maximum(np.abs(weight).max(axis=1, keepdims=True) / 127.5, 1e-9)
    return np.clip(np.rint(weight / scales), -128, 127) * scales


def log_probabilities(logits: Array) -> Array:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@attrs.frozen
class Turned:
    """A tensor that is made when it is read."""

    read: Callable[[], Array]


@attrs.frozen
class RotatedModel:
    """A base with its residual stream turned: the same function, other weights."""

    model: ModelHandle

    @property
    def summary(self) -> ModelSummary:
        return self.model.summary

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    def tensors(self) -> Mapping[str, Any]:
        from lora_core_qnn_sim.graph.rotation import rotated_base

        plain = {name.removeprefix("model."): tensor for name, tensor in self.model.tensors().items()}
        weights = Reading(plain)
        turned, _ = rotated_base(weights, sum(name.endswith("input_layernorm.weight") for name in plain))
        names = {name if name == HEAD else f"model.{name}": name for name in turned}
        found = {name: Turned(lambda key=key: turned[key]) for name, key in names.items()}
        gains = {name: Turned(lambda key=name: np.ones_like(weights[key])) for name in plain if name not in turned}
        return {**{f"model.{name}": each for name, each in gains.items()}, **found}


class Reading(dict[str, Any]):
    """Tensors that are read when they are asked for."""

    def __getitem__(self, name: str) -> Array:
        return super().__getitem__(name).read()


class Judge:
    """Runs a base with other weights in its linear layers, and compares it with the base itself."""

    def __init__(self, model: ModelHandle, prompts: list[Array]) -> None:
        self._tensors, self._prompts = model.tensors(), prompts
        architecture, problems = decoder_of(model.summary)
        if architecture is None:
            raise SystemExit("\n".join(problem.what for problem in problems))
        self._architecture = architecture
        self._head = self._tensors[HEAD if HEAD in self._tensors else EMBEDDING].read().astype(np.float64)
        self._exact = self._run(lambda _name, weight: weight, self._head)
        self._head = eight_bits(self._head)

    def turn(self, model: RotatedModel) -> None:
        """Go on with a base that is the same function."""
        self._tensors = model.tensors()
        head = self._tensors[HEAD].read().astype(np.float64)
        unchanged = self._run(lambda _name, weight: weight, head)
        print(f"rotated, nothing rounded: logits differ by {np.abs(unchanged - self._exact).max():.1e}", flush=True)
        self._head = eight_bits(head)

    def row(self, layers: Callable[[str], Rounded | None]) -> str:
        def stored(name: str, weight: Array) -> Array:
            rounded = layers(name)
            return weight if rounded is None else restored(rounded)

        return self.told(self._run(stored, self._head))

    def stored(self, weights: Callable[[str, Array], Array], embedding: Array, head: Array) -> str:
        """Return the row of weights as they are given, tokens read from another `embedding`."""
        self._tensors = {**self._tensors, EMBEDDING: Turned(lambda: embedding)}
        return self.told(self._run(weights, head))

    def told(self, own: Array) -> str:
        """Return the row of these logarithms of probabilities."""
        divergences = (np.exp(self._exact) * (self._exact - own)).sum(axis=1)
        equal = (self._exact.argmax(axis=1) == own.argmax(axis=1)).mean()
        return f"{divergences.mean():.3f} ({np.median(divergences):.3f}) | {equal:.1%}"

    def _run(self, weights: Callable[[str, Array], Array], head: Array) -> Array:
        decoder = CalibratedDecoder.over(
            self._architecture, self._tensors, self._prompts, lambda name, _inputs, weight: weights(name, weight)
        )
        return log_probabilities(decoder.run(self._prompts) @ head.T)


def policies(model: ModelHandle, judge: Judge, backend: str) -> Iterator[str]:
    """Yield the row of each policy of `STORED`."""
    hub, layers, tensors = PluginHub(), model.summary.layers, model.tensors()
    by_name = {layer.name: layer for layer in layers}
    head = next(layer for layer in layers if layer.is_output)
    table = tensors[EMBEDDING].read()
    for name, more, options in STORED[backend]:
        policy = parse_policy(name, hub.policies, head=more)
        job = ExportJob(model=model, adapters=(), plans=(), policy=policy, options=hub.options(backend, options))
        schemes = policy.assign(layers).schemes
        start = time.process_time()
        with tempfile.TemporaryDirectory() as work:
            rounded = hub.backend(backend).rounding(job, Path(work), ignore)

            def weight(layer: str, given: Array, rounded: Any = rounded) -> Array:
                return rounded(by_name[layer], given.astype(np.float32)).astype(np.float64)

            read = rounded(head, table if head.tied_to else tensors[HEAD].read()).astype(np.float64)
            once = head.tied_to is not None and schemes[head.name] == schemes[head.tied_to]
            rows = read if once else eight_bits(table) if policy.embedding is not None else table
            found = judge.stored(weight, rows, read)
        spent = time.process_time() - start
        said = " ".join(
            [f"`{name}`", *([f"`--head {more}`"] if more else []), *(f"`--{k} {v}`" for k, v in options.items())]
        )
        yield f"| {said} | {stored_bytes(model, schemes, SCALE_BYTES[backend]) / 1e6:.1f} MB | {found} | {spent:.0f} |"


def stored_bytes(model: ModelHandle, schemes: Mapping[str, Scheme | None], scale: int) -> float:
    """Return the bytes of linear layers, head and embedding: a scale has `scale`, a tied head of equal bits none."""
    total = 0.0
    for layer in model.summary.layers:
        scheme, tied = schemes[layer.name], schemes.get(layer.tied_to or "")
        if layer.tied_to and (scheme and (scheme.bits, scheme.group_size)) == (tied and (tied.bits, tied.group_size)):
            continue
        count, bits = layer.in_features * layer.out_features, scheme.bits if scheme else 32
        rows = layer.in_features if layer.kind == "embedding" else layer.out_features
        groups = count // scheme.group_size if scheme and scheme.group_size else rows
        total += count * bits / 8 + (scale * groups if bits < 16 else 0)
    return total


def bundles(paths: list[Path], prompts: list[Array], judge: Judge) -> Iterator[str]:
    """Yield the row of each bundle, run on its own runtime."""
    for path in paths:
        start, rows = time.process_time(), []
        with lora_core.open(path, options={"threads": 1}) as session:
            session.load(None)
            for prompt in prompts:
                steps = (session.step(None, (int(token),), place) for place, token in enumerate(prompt))
                rows += [np.array(logits, np.float64) for logits in steps]
        told = judge.told(log_probabilities(np.stack(rows)))
        size = sum(artifact.size for artifact in open_bundle(path).manifest.base_artifacts)
        yield f"| {path.name} | {size / 1e6:.2f} MB | {told} | {time.process_time() - start:.0f} |"


def ways(model: ModelHandle, work: Path) -> Iterator[tuple[str, Callable[[str], Rounded | None], float]]:
    """Yield each way of rounding: its name, what it makes of a layer, and the CPU seconds that it took for all."""
    tensors = model.tensors()
    names = [layer.name for layer in model.summary.layers if layer.kind == "linear" and not layer.is_output]
    each: Mapping[str, Callable[[Array], Rounded]] = {
        "`--scale-search affine`": by_range,
        f"the scale with the least squared error of each group, of {len(FACTORS)}": least_squares,
        "`--scale-search fitted`, the default": lambda weight: fitted(weight, GRID),
    }
    for name, round_one in each.items():
        start = time.process_time()
        layers = {layer: round_one(tensors[f"{layer}.weight"].read()) for layer in names}
        yield name, layers.get, time.process_time() - start
    rows = next(layer.in_features for layer in model.summary.layers if layer.kind == "embedding")
    prompts = calibration_prompts(None, model.tokenizer, rows, LONGEST_PROMPT)
    count = sum(map(len, prompts))
    for name, compensate in (("importance", False), ("compensated", True)):
        start, grids = time.process_time(), dict.fromkeys(names, GRID)
        (work / name).mkdir()
        kept = round_layers(model, grids, prompts, work / name, ignore, compensate=compensate)
        spent = time.process_time() - start
        yield f"`--rounding {name}`, built-in prompts ({count} tokens)", partial(kept.rows, start=0), spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rotated", action="store_true", help="turn the residual stream first")
    parser.add_argument("--stored", choices=STORED, help="measure the policies of a backend as it stores them")
    parser.add_argument("--bundle", type=Path, nargs="+", help="measure bundles of the model on their own runtimes")
    chosen = parser.parse_args()
    model = HfModelSource().open(str(chosen.model))
    tokenizer = Tokenizer.from_file(str(chosen.model / "tokenizer.json"))
    prompts = [np.asarray(tokenizer.encode(text).ids, np.int64) for text in TEXT]
    print(f"{sum(map(len, prompts))} tokens", flush=True)
    judge = Judge(model, prompts)
    if chosen.stored or chosen.bundle:
        print("| policy | bytes | KL | top-1 | CPU s |\n|---|---|---|---|---|", flush=True)
        rows = policies(model, judge, chosen.stored) if chosen.stored else bundles(chosen.bundle, prompts, judge)
        for row in rows:
            print(row, flush=True)
        return
    base: Any = model
    if chosen.rotated:
        base = RotatedModel(model)
        judge.turn(base)
    print("| scales and rounding | KL | top-1 | CPU s |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as work:
        for name, layers, seconds in ways(base, Path(work)):
            print(f"| {name} | {judge.row(layers)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
