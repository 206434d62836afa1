"""Rounding of base weights that compensates its own error on the calibration prompts.

Scales stay those of plain rounding; only integers change (`lora_core.preparation.compensation`), so the graph and its
cost are the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.preparation.compensation import compensated, inverse_factor
from lora_core_qnn_sim.encodings.grid import ChannelWeight, quantize_channels
from lora_core_qnn_sim.graph.nodes import Node, build_nodes
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.splitting import PRODUCT
from lora_core_qnn_sim.runtime.floating import FloatRun
from lora_core_qnn_sim.runtime.weights import BaseWeights

Array = npt.NDArray[Any]


@attrs.define(kw_only=True, eq=False)
class InputObserver:
    """Observes every input of a linear layer; call it as the observer of a float run.

    `moments` are sums of x x^T over tokens, `peaks` the largest magnitudes by channel of the products inside MLPs.
    """

    spec: GraphSpec
    moments: dict[str, Array] = attrs.field(factory=dict)
    peaks: dict[str, Array] = attrs.field(factory=dict)
    inputs: frozenset[str] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.inputs = frozenset(node.inputs[0] for node in rounded_nodes(self.spec))

    def __call__(self, name: str, value: Array) -> None:
        """Add the tokens of one activation."""
        if name in self.inputs:
            wide = np.asarray(value, np.float64)
            self.moments[name] = wide.T @ wide
            if name.endswith(PRODUCT):
                self.peaks[name] = np.abs(wide).max(axis=0).astype(np.float32)


def observe_inputs(
    spec: GraphSpec, weights: Mapping[str, Array], cos: Array, sin: Array, prompts: Sequence[npt.NDArray[np.int64]]
) -> InputObserver:
    """Return what the inputs of linear layers are on `prompts` with the real `weights`."""
    observer = InputObserver(spec=spec)
    tables = BaseWeights(linears={}, vectors={}, cos=cos, sin=sin)

    def wide(name: str) -> Array:
        return np.asarray(weights[name], np.float64)

    # float64, as calibration: the order of summation then moves what is rounded by 1e-13 of a step.
    FloatRun(spec=spec, weight=wide, base=tables, lora={}, observe=observer).watch(prompts, observer.inputs)
    return observer


def rounded_nodes(spec: GraphSpec) -> list[Node]:
    """Return the linear layers whose weights are worth it: all but embedding and head, which a table look-up shares."""
    return [node for node in build_nodes(spec) if node.op == "linear" and node.output != "lm_head.output"]


def compensated_base(
    spec: GraphSpec, weights: Mapping[str, Array], bits: Mapping[str, int], moments: Mapping[str, Array]
) -> dict[str, ChannelWeight]:
    """Return the matrix of every linear layer in `bits` (by tensor name), its integers chosen with compensation."""
    factors: dict[str, Array] = {}
    out = {}
    for node in rounded_nodes(spec):
        source, name = node.inputs[0], node.weights["weight"]
        if source not in factors:
            factors = {source: inverse_factor(moments[source])}
        weight = weights[name]
        out[name] = _round(np.asarray(weight, np.float64), quantize_channels(weight, bits[name]), factors[source])
    return out


def _round(weight: Array, plain: ChannelWeight, factor: Array) -> ChannelWeight:
    top = (1 << (plain.bits - 1)) - 1
    scales = plain.scales.astype(np.float64)
    integers, _ = compensated(
        weight, factor, lambda _start, _columns: scales, group=weight.shape[1], lowest=-top, highest=top
    )
    return ChannelWeight(bits=plain.bits, values=integers, scales=plain.scales)
