"""Executes the nodes of a graph on integer grids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.graph.nodes import Node, build_nodes, columns_of
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.runtime import kernels
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache
from lora_core_qnn_sim.runtime.weights import BaseWeights

Grid = npt.NDArray[np.float64]


@attrs.define(kw_only=True, eq=False)
class Execution:
    """What one execution works on: its tokens, where they stand, the cache, and the values so far."""

    tokens: npt.NDArray[np.int64]
    start: int
    cache: QuantizedKvCache
    alphas: Grid
    values: dict[str, Grid] = attrs.field(factory=dict)


@attrs.define(kw_only=True, eq=False)
class Executor:
    """Runs one graph; `encodings` and `lora` are what the applied sections say.

    `lora` maps updatable weights to their signed integers. Set both through `update`, which drops what was derived
    from the old ones.
    """

    spec: GraphSpec
    base: BaseWeights
    encodings: Mapping[str, Encoding]
    lora: Mapping[str, npt.NDArray[Any]]
    nodes: tuple[Node, ...] = attrs.field(init=False)
    _tables: dict[str, Grid] = attrs.field(factory=dict, init=False)
    _lora_matrices: dict[str, Grid] = attrs.field(factory=dict, init=False)

    def __attrs_post_init__(self) -> None:
        self.nodes = build_nodes(self.spec)
        self.update(lora=self.lora)

    def update(
        self, *, encodings: Mapping[str, Encoding] | None = None, lora: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> None:
        """Take new encodings, new LoRA weights, or both."""
        if encodings is not None:
            self.encodings = encodings
            self._tables.clear()
        if lora is not None:
            self.lora = lora
            self._lora_matrices = {name: array.astype(np.float64) for name, array in lora.items()}

    def activation(self, name: str, tokens: npt.NDArray[np.int64], cache: QuantizedKvCache, alphas: Grid) -> Grid:
        """Execute for the first `tokens` of a text, as far as the activation `name`, and return its centred integers.

        Keys and values are written into `cache`, as by `run`.
        """
        execution = Execution(tokens=tokens, start=0, cache=cache, alphas=alphas)
        for node in self.nodes:
            execution.values[node.output] = getattr(self, f"_{node.op}")(node, execution)
            if node.output == name:
                return execution.values[name]
        raise KeyError(name)

    def run(
        self, tokens: npt.NDArray[np.int64], start: int, cache: QuantizedKvCache, alphas: Grid, *, last_only: bool
    ) -> Grid:
        """Execute for `tokens` at positions from `start`; return centred logits, (T, vocab) or (1, vocab).

        `alphas` are the integers of the alpha vector. Keys and values are written into `cache`, whose `length` is the
        caller's to advance.
        """
        execution = Execution(tokens=tokens, start=start, cache=cache, alphas=alphas)
        cut = next(i for i, node in enumerate(self.nodes) if node.output == "norm.output")
        for index, node in enumerate(self.nodes):
            if index == cut and last_only:
                execution.values[node.inputs[0]] = execution.values[node.inputs[0]][-1:]
            execution.values[node.output] = getattr(self, f"_{node.op}")(node, execution)
        return execution.values[self.spec.dims.logits]

    def _embed(self, node: Node, execution: Execution) -> Grid:
        table, out = self.base.linears[node.weights["weight"]], self.encodings[node.output]
        rows = table.values[execution.tokens].astype(np.float64)
        scales = table.scales[execution.tokens].astype(np.float64)[:, None]
        return kernels.saturate(rows * (scales * self.spec.dims.embedding_scale / out.scale), out)

    def _linear(self, node: Node, execution: Execution) -> Grid:
        source, out = self.encodings[node.inputs[0]], self.encodings[node.output]
        scales = self.base.linears[node.weights["weight"]].scales.astype(np.float64) * source.scale
        bias = None
        if "bias" in node.weights:
            bias = np.rint(self.base.vector(node.weights["bias"]) / scales)
        x, weight = execution.values[node.inputs[0]], self.base.matrix(node.weights["weight"])
        return kernels.linear(x, weight, bias, scales / out.scale, out)

    def _lora_a(self, node: Node, execution: Execution) -> Grid:
        return self._updatable(node, execution.values[node.inputs[0]], self.encodings[node.inputs[0]].scale)

    def _lora_b(self, node: Node, execution: Execution) -> Grid:
        middle = execution.values[node.inputs[0]]
        weighted = middle * np.repeat(execution.alphas, middle.shape[-1] // len(execution.alphas))
        return self._updatable(node, weighted, self.encodings[node.inputs[0]].scale * kernels.ALPHA.scale)

    def _updatable(self, node: Node, x: Grid, scale: float) -> Grid:
        name = node.weights["weight"]
        out = self.encodings[node.output]
        multiplier = np.float64(scale * self.encodings[name].scale / out.scale)
        return kernels.linear(x, self._lora_matrices[name], None, np.asarray(multiplier), out)

    def _norm(self, node: Node, execution: Execution) -> Grid:
        x = execution.values[node.inputs[0]]
        shaped = x.reshape(len(x), node.heads, -1) if node.heads else x
        gamma = self.base.vector(node.weights["weight"]) if node.weights else np.ones(1)
        source, out = self.encodings[node.inputs[0]], self.encodings[node.output]
        return kernels.norm(shaped, source, gamma, self.spec.dims.norm_eps, out).reshape(x.shape)

    def _rope(self, node: Node, execution: Execution) -> Grid:
        x = execution.values[node.inputs[0]]
        where = slice(execution.start, execution.start + len(x))
        columns = self.spec.dims.columns(node.op)
        cos = self.base.cos[where, None, columns].astype(np.float64)
        sin = self.base.sin[where, None, columns].astype(np.float64)
        source, out = self.encodings[node.inputs[0]], self.encodings[node.output]
        return kernels.rope(x.reshape(len(x), node.heads, -1), source, cos, sin, out).reshape(x.shape)

    _rope_local = _rope

    def _attention(self, node: Node, execution: Execution) -> Grid:
        dims, cache = self.spec.dims, execution.cache
        q, k, v = (self.encodings[name] for name in node.inputs)
        scores, *between, probabilities = (self.encodings[name] for name in node.inner)
        compared = between[0] if between else scores
        out, count, end = self.encodings[node.output], len(execution.tokens), execution.start + len(execution.tokens)
        shape = (count, dims.n_kv_heads, dims.head_dim)
        for store, name, grid in ((cache.keys, node.inputs[1], k), (cache.values, node.inputs[2], v)):
            store[node.layer][execution.start : end] = (execution.values[name] - grid.offset).reshape(shape)
        keys = cache.keys[node.layer][:end].astype(np.float64) + k.offset
        values = cache.values[node.layer][:end].astype(np.float64) + v.offset
        visible = np.arange(end)[None, :] <= np.arange(execution.start, end)[:, None]
        return kernels.attention(
            execution.values[node.inputs[0]].reshape(count, dims.n_heads, dims.head_dim),
            keys,
            values,
            visible,
            score_multiplier=q.scale * k.scale / dims.score_divisor / scores.scale,
            table=self._table(node.inner[0], lambda: kernels.exp_table(compared)),
            caps=self._caps(node, scores, compared),
            mix_multiplier=probabilities.scale * v.scale / out.scale,
            scores=scores,
            probabilities=probabilities,
            out=out,
        )

    def _convolve(self, node: Node, execution: Execution) -> Grid:
        source, out = self.encodings[node.inputs[0]], self.encodings[node.output]
        taps = self.base.vector(node.weights["weight"])[:, 0]
        x, start, store = execution.values[node.inputs[0]], execution.start, execution.cache.keys[node.layer]
        store[start : start + len(x)] = x - source.offset
        before = np.zeros((taps.shape[1] - 1, x.shape[1]))
        kept = store[max(0, start - len(before)) : start].astype(np.float64) + source.offset
        before[len(before) - len(kept) :] = kept
        bias = self.base.vector(node.weights["bias"]) if "bias" in node.weights else None
        return kernels.convolve(np.concatenate([before, x]), source.scale, taps, bias, out)

    def _caps(self, node: Node, scores: Encoding, compared: Encoding) -> Grid | None:
        cap = self.spec.dims.score_cap
        if cap is None:
            return None
        return self._table(node.inner[1], lambda: kernels.cap_table(scores, compared, cap))

    def _add(self, node: Node, execution: Execution) -> Grid:
        left, right = node.inputs
        a, b = self.encodings[left], self.encodings[right]
        x, y = execution.values[left], execution.values[right]
        return kernels.add(x, a.scale, y, b.scale * self.spec.dims.added(node.output), self.encodings[node.output])

    def _mul(self, node: Node, execution: Execution) -> Grid:
        left, right = node.inputs
        a, b = self.encodings[left], self.encodings[right]
        x, y = execution.values[left], execution.values[right]
        return kernels.mul(x, a.scale, y, b.scale, self.encodings[node.output])

    def _silu(self, node: Node, execution: Execution) -> Grid:
        return self._looked_up(node, execution, kernels.silu_table)

    def _gelu_tanh(self, node: Node, execution: Execution) -> Grid:
        return self._looked_up(node, execution, kernels.gelu_tanh_table)

    def _cap(self, node: Node, execution: Execution) -> Grid:
        return self._looked_up(node, execution, lambda x, out: kernels.cap_table(x, out, self.spec.dims.logit_cap))

    def _part(self, node: Node, execution: Execution) -> Grid:
        x = execution.values[node.inputs[0]]
        source, out = self.encodings[node.inputs[0]], self.encodings[node.output]
        return kernels.saturate(x[..., columns_of(node, x.shape[-1])] * (source.scale / out.scale), out)

    def _looked_up(self, node: Node, execution: Execution, make: Callable[[Encoding, Encoding], Grid]) -> Grid:
        source, out = self.encodings[node.inputs[0]], self.encodings[node.output]
        table = self._table(node.output, lambda: make(source, out))
        return kernels.looked_up(execution.values[node.inputs[0]], source, table)

    def _table(self, name: str, make: Any) -> Grid:
        if name not in self._tables:
            self._tables[name] = make()
        return self._tables[name]
