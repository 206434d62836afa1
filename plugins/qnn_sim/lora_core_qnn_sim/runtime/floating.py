"""The same graph in floating point: what calibration observes and what quality is measured against.

Calibration runs it in float64: its ranges are then rounded to 12 bits, far coarser than what the order of summation or
a processor's exponential change, so that equal inputs give equal bytes whatever the processor and number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.graph.nodes import Node, build_nodes, columns_of
from lora_core_qnn_sim.graph.spec import GraphSpec, lora_a
from lora_core_qnn_sim.runtime.kernels import capped, gelu_argument
from lora_core_qnn_sim.runtime.weights import BaseWeights

Real = npt.NDArray[Any]
Observe = Callable[[str, Real], None]


@attrs.define(kw_only=True, eq=False)
class FloatRun:
    """One pass over several prompts at once, in the type of the weights.

    `weight` returns a static weight by name; `lora` holds real A and B (missing: zero). `observe` sees every
    activation that the integer graph quantizes. `rows` returns some rows of a static weight:
    few of an embedding's are looked up.
    """

    spec: GraphSpec
    weight: Callable[[str], Real]
    base: BaseWeights
    lora: Mapping[str, Real]
    observe: Observe | None = None
    rows: Callable[[str, npt.NDArray[np.int64]], Real] | None = None
    _lengths: list[int] = attrs.field(factory=list, init=False)
    _values: dict[str, Real] = attrs.field(factory=dict, init=False)

    def logits(self, prompts: Sequence[npt.NDArray[np.int64]]) -> list[Real]:
        """Return the logits of every position of every prompt."""
        self._run(prompts, self.spec.dims.logits)
        flat = self._values.pop(self.spec.dims.logits)
        return np.split(flat, np.cumsum(self._lengths)[:-1])

    def watch(self, prompts: Sequence[npt.NDArray[np.int64]], names: Collection[str]) -> None:
        """Run as far as the last of the activations `names`, for what `observe` sees; the head is often left out."""
        made = [node.output for node in build_nodes(self.spec) if {node.output, *node.inner} & set(names)]
        if made:
            self._run(prompts, made[-1])

    def _run(self, prompts: Sequence[npt.NDArray[np.int64]], end: str) -> None:
        self._values.clear()
        self._lengths = [len(prompt) for prompt in prompts]
        tokens = np.concatenate(prompts)
        nodes = build_nodes(self.spec)
        last = {name: index for index, node in enumerate(nodes) for name in node.inputs}
        for index, node in enumerate(nodes):
            value = self._compute(node, tokens)
            self._values[node.output] = value
            self._see(node.output, value)
            for name in node.inputs:
                if last[name] == index:
                    del self._values[name]
            if node.output == end:
                return

    def _see(self, name: str, value: Real) -> None:
        if self.observe is not None:
            self.observe(name, value)

    def _compute(self, node: Node, tokens: npt.NDArray[np.int64]) -> Real:
        values, dims = [self._values[name] for name in node.inputs], self.spec.dims
        match node.op:
            case "embed":
                name = node.weights["weight"]
                rows = self.weight(name)[tokens] if self.rows is None else self.rows(name, tokens)
                return rows if dims.embedding_scale == 1.0 else rows * rows.dtype.type(dims.embedding_scale)
            case "linear":
                out: Real = values[0] @ self.weight(node.weights["weight"]).T
                return out + self.weight(node.weights["bias"]) if "bias" in node.weights else out
            case "lora_a" | "lora_b":
                return self._branch(node, values[0])
            case "norm":
                return self._norm(node, values[0])
            case "rope" | "rope_local":
                return self._rope(node, values[0])
            case "attention":
                return self._attention(node, *values)
            case "add":
                factor = dims.added(node.output)
                total: Real = values[0] + (values[1] if factor == 1.0 else values[1] * values[1].dtype.type(factor))
                return total
            case "mul":
                return values[0] * values[1]
            case "part":
                return values[0][..., columns_of(node, values[0].shape[-1])]
            case "cap":
                return capped(values[0], dims.logit_cap)
            case "convolve":
                return self._convolve(node, values[0])
            case "silu":
                return values[0] * (0.5 * (1.0 + np.tanh(values[0] * 0.5)))
            case "gelu_tanh":
                gated: Real = values[0] * (0.5 * (1.0 + np.tanh(gelu_argument(values[0]))))
                return gated

    def _branch(self, node: Node, x: Real) -> Real:
        weight = self.lora.get(node.weights["weight"])
        if weight is not None:
            return x @ weight.T
        slot = next(slot for slot in self.spec.slots if node.output.startswith(f"{slot.layer}.lora_"))
        width = slot.rank if node.weights["weight"] == lora_a(slot.layer) else slot.out_features
        return np.zeros((len(x), width), x.dtype)

    def _norm(self, node: Node, x: Real) -> Real:
        shaped = x.reshape(len(x), node.heads, -1) if node.heads else x
        mean = np.square(shaped).mean(axis=-1, keepdims=True)
        normed: Real = shaped / np.sqrt(mean + self.spec.dims.norm_eps)
        if node.weights:
            normed = normed * self.weight(node.weights["weight"])
        return normed.reshape(x.shape)

    def _rope(self, node: Node, x: Real) -> Real:
        where = np.concatenate([np.arange(length) for length in self._lengths])
        columns = self.spec.dims.columns(node.op)
        cos, sin = self.base.cos[where, None, columns], self.base.sin[where, None, columns]
        shaped = x.reshape(len(x), node.heads, -1)
        half = cos.shape[-1]
        first, second, rest = shaped[..., :half], shaped[..., half : 2 * half], shaped[..., 2 * half :]
        rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
        return rotated.reshape(x.shape)

    def _convolve(self, node: Node, x: Real) -> Real:
        taps = self.weight(node.weights["weight"])[:, 0]
        before = np.zeros((taps.shape[1] - 1, x.shape[1]), x.dtype)
        outputs = []
        for part in np.split(x, np.cumsum(self._lengths)[:-1]):
            tokens = np.concatenate([before, part])
            outputs.append(sum(tokens[place : place + len(part)] * taps[:, place] for place in range(taps.shape[1])))
        mixed: Real = np.concatenate(outputs)
        return mixed + self.weight(node.weights["bias"]) if "bias" in node.weights else mixed

    def _attention(self, node: Node, q: Real, k: Real, v: Real) -> Real:
        outputs, begin = [], 0
        for length in self._lengths:
            rows = slice(begin, begin + length)
            outputs.append(self._attend(node, q[rows], k[rows], v[rows]))
            begin += length
        return np.concatenate(outputs)

    def _attend(self, node: Node, q: Real, k: Real, v: Real) -> Real:
        dims, length = self.spec.dims, len(q)
        group = dims.n_heads // dims.n_kv_heads
        heads = q.reshape(length, dims.n_kv_heads, group, dims.head_dim).transpose(1, 2, 0, 3)
        keys = k.reshape(length, dims.n_kv_heads, 1, dims.head_dim).transpose(1, 2, 3, 0)
        scores = heads @ keys / dims.score_divisor
        visible = np.tri(length, dtype=bool)
        # Only scores that are used count for the range of the scores' grid.
        self._see(node.inner[0], scores[..., visible])
        if dims.score_cap is not None:
            scores = capped(scores, dims.score_cap)
            self._see(node.inner[1], scores[..., visible])
        scores = np.where(visible, scores, -np.inf)
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights = powers / powers.sum(axis=-1, keepdims=True)
        self._see(node.inner[-1], weights)
        mixed: Real = weights @ v.reshape(length, dims.n_kv_heads, 1, dims.head_dim).transpose(1, 2, 0, 3)
        return mixed.transpose(2, 0, 1, 3).reshape(length, dims.n_heads * dims.head_dim)
