"""The integer graph computed plainly: Python integers and floats, one element at a time.

It shares with the runtime only the graph's nodes and encodings as data; every operation is written again from its
definition, so that equality is evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.graph.nodes import Node, build_nodes
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.runtime.weights import BaseWeights

Rows = list[list[int]]


def onto(real_over_scale: float, grid: Encoding) -> int:
    """Round to nearest, ties to even, and saturate."""
    return max(grid.offset, min(grid.offset + 2**grid.bits - 1, round(real_over_scale)))


def plain_logits(
    spec: GraphSpec,
    base: BaseWeights,
    encodings: Mapping[str, Encoding],
    lora: Mapping[str, Any],
    tokens: list[int],
    alphas: list[int],
) -> Rows:
    """Return the centred logits of every position."""
    values: dict[str, Rows] = {}
    for node in build_nodes(spec):
        values[node.output] = _node(node, spec, base, encodings, lora, tokens, alphas, values)
    return values[spec.dims.logits]


def _node(
    node: Node,
    spec: GraphSpec,
    base: BaseWeights,
    enc: Mapping[str, Encoding],
    lora: Mapping[str, Any],
    tokens: list[int],
    alphas: list[int],
    values: Mapping[str, Rows],
) -> Rows:
    out = enc[node.output]
    sources = [values[name] for name in node.inputs]
    grids = [enc[name] for name in node.inputs]
    if node.op == "embed":
        table = base.linears[node.weights["weight"]]
        scale = spec.dims.embedding_scale
        return [
            [onto(int(v) * (float(table.scales[t]) * scale / out.scale), out) for v in table.values[t]] for t in tokens
        ]
    if node.op == "linear":
        return _linear(node, base, sources[0], grids[0], out)
    if node.op in ("lora_a", "lora_b"):
        rows, scale = sources[0], grids[0].scale
        if node.op == "lora_b":
            block = len(rows[0]) // len(alphas)
            rows = [[v * alphas[i // block] for i, v in enumerate(row)] for row in rows]
            scale = scale * 2.0**-14
        name = node.weights["weight"]
        multiplier = scale * enc[name].scale / out.scale
        weight = [[int(v) for v in row] for row in lora[name]]
        return [[onto(_dot(row, w) * multiplier, out) for w in weight] for row in rows]
    if node.op == "norm":
        gamma = [float(v) for v in base.vectors[node.weights["weight"]]] if node.weights else [1.0] * spec.dims.dim
        return [_norm(row, node.heads, gamma, grids[0], spec.dims.norm_eps, out) for row in sources[0]]
    if node.op == "rope":
        return [_rope(row, node.heads, base.cos[p], base.sin[p], grids[0], out) for p, row in enumerate(sources[0])]
    if node.op == "rope_local":  # the second half of each row of the tables
        cos, sin = (table[:, table.shape[1] // 2 :] for table in (base.cos, base.sin))
        return [_rope(row, node.heads, cos[p], sin[p], grids[0], out) for p, row in enumerate(sources[0])]
    if node.op == "part":
        begin, end, total = node.share or (0, 0, 1)
        width = len(sources[0][0]) // total
        return [
            [onto(v * (grids[0].scale / out.scale), out) for v in row[begin * width : end * width]]
            for row in sources[0]
        ]
    if node.op == "convolve":
        return _convolve(node, base, sources[0], grids[0], out)
    if node.op == "cap":
        return [[_capped(v, grids[0], spec.dims.logit_cap or 0.0, out) for v in row] for row in sources[0]]
    if node.op == "attention":
        return _attention(node, spec, enc, sources, grids, out)
    if node.op == "add":
        a, b = grids
        return [
            [
                onto((x * a.scale + y * (b.scale * spec.dims.added(node.output))) / out.scale, out)
                for x, y in zip(*r, strict=True)
            ]
            for r in zip(*sources, strict=True)
        ]
    if node.op == "mul":
        m = grids[0].scale * grids[1].scale / out.scale
        return [[onto(x * y * m, out) for x, y in zip(*r, strict=True)] for r in zip(*sources, strict=True)]
    if node.op == "gelu_tanh":
        return [[onto(_gelu(x * grids[0].scale) / out.scale, out) for x in row] for row in sources[0]]
    assert node.op == "silu"
    return [[onto(_silu(x * grids[0].scale) / out.scale, out) for x in row] for row in sources[0]]


def _dot(a: list[int], b: list[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _linear(node: Node, base: BaseWeights, rows: Rows, grid: Encoding, out: Encoding) -> Rows:
    weight = base.linears[node.weights["weight"]]
    integers = [[int(v) for v in row] for row in weight.values]
    scales = [float(s) * grid.scale for s in weight.scales]
    bias = [0] * len(scales)
    if "bias" in node.weights:
        bias = [round(float(b) / s) for b, s in zip(base.vectors[node.weights["bias"]], scales, strict=True)]
    return [
        [onto((_dot(row, w) + b) * (s / out.scale), out) for w, b, s in zip(integers, bias, scales, strict=True)]
        for row in rows
    ]


def _norm(row: list[int], heads: int, gamma: list[float], grid: Encoding, eps: float, out: Encoding) -> list[int]:
    result: list[int] = []
    width = len(row) // (heads or 1)
    for start in range(0, len(row), width):
        part = row[start : start + width]
        mean = sum(v * v for v in part) * (grid.scale * grid.scale) / width
        inverse = 1.0 / math.sqrt(mean + eps)
        result += [onto(v * grid.scale * inverse * g / out.scale, out) for v, g in zip(part, gamma, strict=True)]
    return result


def _rope(row: list[int], heads: int, cos: Any, sin: Any, grid: Encoding, out: Encoding) -> list[int]:
    result: list[int] = []
    width, m = len(row) // heads, grid.scale / out.scale
    half = min(width // 2, len(cos))
    for head in range(heads):
        x = row[head * width : (head + 1) * width]
        first = [x[i] * float(cos[i]) - x[i + half] * float(sin[i]) for i in range(half)]
        second = [x[i + half] * float(cos[i]) + x[i] * float(sin[i]) for i in range(half)]
        result += [onto(v * m, out) for v in first + second + x[2 * half :]]
    return result


def _exp(x: float) -> float:
    """The one function that is not exact: numpy's and the C library's may differ in the last place of one in fifty."""
    return float(np.exp(x))


def _silu(x: float) -> float:
    return x / (1.0 + _exp(-x)) if x > -700 else 0.0


def _convolve(node: Node, base: BaseWeights, rows: Rows, grid: Encoding, out: Encoding) -> Rows:
    taps = [[float(v) for v in channel[0]] for channel in base.vectors[node.weights["weight"]]]
    bias = base.vectors[node.weights["bias"]] if "bias" in node.weights else [0.0] * len(taps)
    result: Rows = []
    for position in range(len(rows)):
        row = []
        for channel, weights in enumerate(taps):
            total = 0.0
            for place, weight in enumerate(weights):
                before = position - len(weights) + 1 + place
                total += rows[before][channel] * weight if before >= 0 else 0.0
            row.append(onto((total * grid.scale + float(bias[channel])) / out.scale, out))
        result.append(row)
    return result


def _gelu(x: float) -> float:
    argument = math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))
    return x / (1.0 + _exp(-2.0 * argument)) if argument > -350 else 0.0


def _capped(value: int, grid: Encoding, cap: float, out: Encoding) -> int:
    return onto(float(np.tanh(value * grid.scale / cap)) * cap / out.scale, out)


def _attention(
    node: Node, spec: GraphSpec, enc: Mapping[str, Encoding], sources: list[Rows], grids: list[Encoding], out: Encoding
) -> Rows:
    scores_grid, *between, soft_grid = (enc[name] for name in node.inner)
    grid = between[0] if between else scores_grid
    q, k, v = sources
    width, group = spec.dims.head_dim, spec.dims.n_heads // spec.dims.n_kv_heads
    score_m = grids[0].scale * grids[1].scale / spec.dims.score_divisor / scores_grid.scale
    mix_m = soft_grid.scale * grids[2].scale / out.scale
    result: Rows = []
    for position, row in enumerate(q):
        mixed: list[int] = []
        for head in range(spec.dims.n_heads):
            at = slice(head // group * width, (head // group + 1) * width)
            query = row[head * width : (head + 1) * width]
            scores = [onto(_dot(query, k[p][at]) * score_m, scores_grid) for p in range(position + 1)]
            if between:
                scores = [_capped(s, scores_grid, spec.dims.score_cap or 0.0, grid) for s in scores]
            powers = [round(_exp(-(max(scores) - s) * grid.scale) * 2**30) for s in scores]
            weights = [onto(p / sum(powers) / soft_grid.scale, soft_grid) for p in powers]
            columns = [[v[p][at][i] for p in range(position + 1)] for i in range(width)]
            mixed += [onto(_dot(weights, column) * mix_m, out) for column in columns]
        result.append(mixed)
    return result


def plain_alphas(values: list[float]) -> list[int]:
    """Quantize strengths as the graph's alpha input does."""
    return [int(np.rint(value * 2**14)) for value in values]
