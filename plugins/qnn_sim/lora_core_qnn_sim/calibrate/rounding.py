"""Rounding of base weights that compensates its own error on the calibration prompts.

Integers change (`lora_core.preparation.compensation`), and scales only where it is asked for, so the graph and its cost
are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.preparation.compensation import compensated, inverse_factor
from lora_core.preparation.rounded import DAMPING
from lora_core.quant.fitting import Float32, Grid, weighted_scales
from lora_core_qnn_sim.encodings.grid import ChannelWeight, quantize_channels
from lora_core_qnn_sim.graph.nodes import Node, build_nodes
from lora_core_qnn_sim.graph.rotation import RotatedBase
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.splitting import PRODUCT, SplitBase, Splits, find_splits, split_moments
from lora_core_qnn_sim.runtime.floating import FloatRun
from lora_core_qnn_sim.runtime.weights import BaseWeights

Array = npt.NDArray[Any]


@attrs.frozen(kw_only=True)
class Compensated:
    """The matrices of linear layers by tensor name, rounded, and how the MLPs are split that they belong to."""

    matrices: Mapping[str, ChannelWeight]
    splits: Splits


@attrs.define(kw_only=True, eq=False, slots=False)
class _LayerRounding:
    """Rounds the matrices of each layer when the last of its inputs has been seen: the observer of a float run.

    What is kept of inputs are sums of x x^T over tokens, of one layer: as many float64 values as its widest input
    squared, which is more than its weights.
    """

    spec: GraphSpec
    weights: Mapping[str, Array]
    bits: Mapping[str, int]
    split: bool
    by_importance: bool
    matrices: dict[str, ChannelWeight] = attrs.field(factory=dict)
    splits: dict[str, npt.NDArray[np.int32]] = attrs.field(factory=dict)
    _moments: dict[str, Array] = attrs.field(factory=dict, init=False)

    @cached_property
    def readers(self) -> Mapping[str, Sequence[str]]:
        """The matrices that read each input."""
        found: dict[str, list[str]] = {}
        for node in rounded_nodes(self.spec):
            found.setdefault(node.inputs[0], []).append(node.weights["weight"])
        return found

    def __call__(self, name: str, value: Array) -> None:
        """Add the tokens of one activation."""
        if name not in self.readers:
            return
        wide = np.asarray(value, np.float64)
        self._moments[name] = wide.T @ wide
        if name.endswith(PRODUCT):
            peaks = {name: np.abs(wide).max(axis=0).astype(np.float32)}
            self._round(find_splits(peaks) if self.split else {})

    def _round(self, splits: Splits) -> None:
        weights, moments = SplitBase(weights=self.weights, splits=splits), split_moments(self._moments, splits)
        for source, moment in moments.items():
            factor = inverse_factor(moment, DAMPING) if self.by_importance else inverse_factor(moment)
            for name in self.readers[source]:
                weight, bits = weights[name], self.bits[name]
                scales = (
                    _scales_by_importance(weight, np.diag(moment), bits)
                    if self.by_importance and bits == 4
                    else quantize_channels(weight, bits).scales
                )
                self.matrices[name] = _round(np.asarray(weight, np.float64), bits, scales, factor)
        self.splits.update(splits)
        self._moments.clear()


def compensated_base(
    spec: GraphSpec,
    weights: Mapping[str, Array],
    rope: tuple[Array, Array],
    bits: Mapping[str, int],
    prompts: Sequence[npt.NDArray[np.int64]],
    *,
    split: bool,
    by_importance: bool,
) -> Compensated:
    """Return the matrix of every linear layer in `bits` (by tensor name), its integers chosen with compensation for
    what its inputs are on `prompts` with the real `weights`; with `split`, massive channels of MLPs are split.

    `by_importance`: 4-bit scales err least where each weight counts by the squares of its inputs, else each counts
    alike.
    """
    observer = _LayerRounding(spec=spec, weights=weights, bits=bits, split=split, by_importance=by_importance)
    tables = BaseWeights(linears={}, vectors={}, cos=rope[0], sin=rope[1])

    def wide(name: str) -> Array:
        return np.asarray(weights[name], np.float64)

    def wide_rows(name: str, numbers: npt.NDArray[np.int64]) -> Array:
        rows = weights.rows(name, numbers) if isinstance(weights, RotatedBase) else weights[name][numbers]
        return np.asarray(rows, np.float64)

    # float64, as calibration: the order of summation then moves what is rounded by 1e-13 of a step.
    run = FloatRun(spec=spec, weight=wide, base=tables, lora={}, observe=observer, rows=wide_rows)
    run.watch(prompts, observer.readers)
    return Compensated(matrices=observer.matrices, splits=observer.splits)


def rounded_nodes(spec: GraphSpec) -> list[Node]:
    """Return the linear layers whose weights are worth it: all but embedding and head, which a table look-up shares."""
    return [node for node in build_nodes(spec) if node.op == "linear" and node.output != "lm_head.output"]


def _scales_by_importance(weight: Array, importance: Array, bits: int) -> Float32:
    top = (1 << (bits - 1)) - 1
    grid = Grid(lowest=-top, highest=top, group=weight.shape[1])
    return weighted_scales(np.asarray(weight, np.float32), importance, grid)


def _round(weight: Array, bits: int, scales: Float32, factor: Array) -> ChannelWeight:
    top, wide = (1 << (bits - 1)) - 1, scales.astype(np.float64)
    integers, _ = compensated(
        weight, factor, lambda _start, _columns: wide, group=weight.shape[1], lowest=-top, highest=top
    )
    return ChannelWeight(bits=bits, values=integers, scales=scales)
