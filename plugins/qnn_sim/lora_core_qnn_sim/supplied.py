"""Encodings that the user supplies instead of calibrated ones: `--encodings NAME=FILE`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import attrs
import numpy as np

from lora_core.errors import Problem
from lora_core_qnn_sim.encodings.aimet import AimetEntry, read_aimet
from lora_core_qnn_sim.encodings.grid import ChannelWeight, Encoding
from lora_core_qnn_sim.errors import EncodingsFileError
from lora_core_qnn_sim.graph.nodes import lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.widths import tensor_bits
from lora_core_qnn_sim.modes import encodings_scope
from lora_core_qnn_sim.options import Mode, QnnSimOptions
from lora_core_qnn_sim.runtime.weights import BaseWeights

BASE = "base"


def parse_files(words: Iterable[str]) -> tuple[dict[str, Path], list[Problem]]:
    """Return the file of each name in `NAME=FILE` words, and what is wrong with the words."""
    files: dict[str, Path] = {}
    problems = []
    for word in words:
        name, equals, file = word.partition("=")
        if not name or not equals or not file:
            problems.append(Problem(what=f"Encodings are given as NAME=FILE, not {word!r}"))
        elif name in files:
            problems.append(Problem(what=f"There are two encodings files for {name!r}"))
        elif not Path(file).is_file():
            problems.append(Problem(what=f"There is no encodings file {file!r}", where=f"--encodings {word}"))
        files[name] = Path(file)
    return files, problems


def overridden_base(
    options: QnnSimOptions, spec: GraphSpec, base: BaseWeights
) -> tuple[BaseWeights, dict[str, Encoding]]:
    """Return the base with supplied weight scales applied, and the supplied activation encodings.

    Raises `EncodingsFileError` for entries that the graph has no tensor for or at other bits.
    """
    path = parse_files(options.encodings)[0].get(BASE)
    if path is None:
        return base, {}
    bits = tensor_bits(spec)
    activations: dict[str, Encoding] = {}
    linears = dict(base.linears)
    problems: list[str] = []
    for name, entry in read_aimet(path).items():
        if name in linears:
            wrong = _weight_problems(linears[name], entry)
            problems += wrong
            if not wrong:
                linears[name] = _requantized(linears[name], entry)
        else:
            wrong = _activation_problems(name, entry, bits)
            problems += wrong
            if not wrong:
                activations[name] = _float32(attrs.evolve(entry.per_tensor, symmetric=False))
    _raise(problems, path)
    return BaseWeights(linears=linears, vectors=base.vectors, cos=base.cos, sin=base.sin), activations


def supplied_adapters(
    options: QnnSimOptions, spec: GraphSpec, mode: Mode, base: Mapping[str, Encoding]
) -> dict[str, dict[str, Encoding]]:
    """Return the supplied encodings of each adapter, limited to what `mode` may change.

    Entries outside the mode's scope are accepted if they equal the base's, since exporters write whole graphs.
    """
    files = {name: path for name, path in parse_files(options.encodings)[0].items() if name != BASE}
    return {name: _adapter_encodings(path, spec, mode, base) for name, path in files.items()}


def _adapter_encodings(path: Path, spec: GraphSpec, mode: Mode, base: Mapping[str, Encoding]) -> dict[str, Encoding]:
    scope = encodings_scope(spec, "adapter_only" if mode == "none" else mode)
    bits, weights = tensor_bits(spec), lora_weights(spec)
    found: dict[str, Encoding] = {}
    problems: list[str] = []
    for name, entry in read_aimet(path).items():
        if len(entry.scales) > 1 and name not in bits:
            continue  # a static weight of the base: its integers are compiled in
        wrong = _activation_problems(name, entry, bits)
        problems += wrong
        if wrong:
            continue
        grid = _float32(attrs.evolve(entry.per_tensor, symmetric=name in weights))
        if name in scope:
            found[name] = grid
        elif grid != base.get(name):
            problems.append(f"{name} differs from the base, which mode {mode!r} keeps fixed")
    _raise(problems, path)
    return found


def _activation_problems(name: str, entry: AimetEntry, bits: Mapping[str, int]) -> list[str]:
    if name not in bits:
        return [f"the graph has no tensor {name}"]
    if len(entry.scales) != 1:
        return [f"{name} has {len(entry.scales)} channels, the graph quantizes it per tensor"]
    if entry.bits != bits[name]:
        return [f"{name} has {entry.bits} bits, the graph {bits[name]}"]
    return []


def _weight_problems(weight: ChannelWeight, entry: AimetEntry) -> list[str]:
    if entry.bits != weight.bits or len(entry.scales) != len(weight.scales) or not entry.symmetric:
        return [
            f"{entry.name} has {len(entry.scales)} channels of {entry.bits} bits, "
            f"the graph {len(weight.scales)} symmetric ones of {weight.bits}"
        ]
    return []


def _requantized(weight: ChannelWeight, entry: AimetEntry) -> ChannelWeight:
    """Move the integers to other scales; from the already rounded weight, which equal scales leave untouched."""
    scales = np.asarray(entry.scales, np.float32)
    top = (1 << (weight.bits - 1)) - 1
    values = np.clip(np.rint(weight.dequantized() / scales[:, None]), -top, top).astype(np.int8)
    return ChannelWeight(bits=weight.bits, values=values, scales=scales)


def _float32(grid: Encoding) -> Encoding:
    return attrs.evolve(grid, scale=float(np.float32(grid.scale)))


def _raise(problems: list[str], path: Path) -> None:
    if problems:
        shown = problems[:10] + ([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])
        raise EncodingsFileError([Problem(what=text[0].upper() + text[1:], where=str(path)) for text in shown])
