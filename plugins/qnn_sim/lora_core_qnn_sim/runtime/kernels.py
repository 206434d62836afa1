"""Integer-grid kernels in numpy.

Activations are *centred* integers (q + offset) held in float64. Every sum of products here is a sum of integers whose
partial sums stay below 2^53, so float64 matrix products are exact in any order of summation, with or without fused
multiply-add; what is rounded afterwards is one product per element, in a stated order. So results are equal, bit for
bit, to `plain.py`, which computes with Python integers and floats.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.encodings.grid import Encoding

Grid = npt.NDArray[np.float64]
EXACT = 1 << 53
ALPHA = Encoding(bits=16, scale=2.0**-14, offset=0)
ALPHA_LIMIT = 2.0
_EXP_ONE = float(1 << 30)


def saturate(real_over_scale: Grid, encoding: Encoding) -> Grid:
    """Round to nearest (ties to even) and saturate to the grid."""
    return np.clip(np.rint(real_over_scale), encoding.low, encoding.high)


def linear(x: Grid, weight: Grid, bias: Grid | None, multiplier: Grid, out: Encoding) -> Grid:
    """Multiply centred `x` (T, in) by integer `weight` (out, in): `rint((x @ w.T + bias) * multiplier)`.

    `multiplier` is the input's scale times the weight's (per output channel) over the output's.
    """
    accumulated = x @ weight.T
    if bias is not None:
        accumulated += bias
    accumulated *= multiplier
    return saturate(accumulated, out)


def norm(x: Grid, encoding: Encoding, gamma: Grid, eps: float, out: Encoding) -> Grid:
    """Apply RMSNorm over the last axis: the sum of squares is an exact integer."""
    squares = np.square(x).sum(axis=-1, keepdims=True)
    mean = squares * (encoding.scale * encoding.scale) / x.shape[-1]
    inverse = 1.0 / np.sqrt(mean + eps)
    return saturate(x * encoding.scale * inverse * gamma / out.scale, out)


def add(a: Grid, a_scale: float, b: Grid, b_scale: float, out: Encoding) -> Grid:
    """Add two tensors on different grids."""
    return saturate((a * a_scale + b * b_scale) / out.scale, out)


def mul(a: Grid, a_scale: float, b: Grid, b_scale: float, out: Encoding) -> Grid:
    """Multiply elementwise: the product of the integers is exact."""
    return saturate(a * b * (a_scale * b_scale / out.scale), out)


def rope(x: Grid, encoding: Encoding, cos: Grid, sin: Grid, out: Encoding) -> Grid:
    """Rotate halves of the first values of the last axis of `x` (T, heads, head_dim), twice as many as `cos` and `sin`
    (T, 1, half) have, and leave the rest.
    """
    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)
    return saturate(rotated * (encoding.scale / out.scale), out)


def silu_table(encoding: Encoding, out: Encoding) -> Grid:
    """Return x * sigmoid(x) for every value of the input grid, on the output grid."""
    x = np.arange(encoding.low, encoding.high + 1, dtype=np.float64) * encoding.scale
    with np.errstate(over="ignore"):
        return saturate(x / (1.0 + np.exp(-x)) / out.scale, out)


def gelu_argument(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return what GELU's approximation takes the hyperbolic tangent of: sqrt(2 / pi) (x + 0.044715 x^3)."""
    found: npt.NDArray[Any] = x.dtype.type(math.sqrt(2.0 / math.pi)) * (x + x.dtype.type(0.044715) * (x * x * x))
    return found


def gelu_tanh_table(encoding: Encoding, out: Encoding) -> Grid:
    """Return `x * sigmoid(2 * gelu_argument(x))` for every value of the input grid, on the output grid."""
    x = np.arange(encoding.low, encoding.high + 1, dtype=np.float64) * encoding.scale
    with np.errstate(over="ignore"):
        return saturate(x / (1.0 + np.exp(-2.0 * gelu_argument(x))) / out.scale, out)


def capped(x: npt.NDArray[Any], cap: float | None) -> npt.NDArray[Any]:
    """Return `cap * tanh(x / cap)`."""
    assert cap is not None, "what is capped has a cap"
    limit = x.dtype.type(cap)
    found: npt.NDArray[Any] = np.tanh(x / limit) * limit
    return found


def cap_table(encoding: Encoding, out: Encoding, cap: float | None) -> Grid:
    """Return `capped` for every value of the input grid, on the output grid."""
    x = np.arange(encoding.low, encoding.high + 1, dtype=np.float64) * encoding.scale
    return saturate(capped(x, cap) / out.scale, out)


def looked_up(x: Grid, encoding: Encoding, table: Grid) -> Grid:
    """Return what `table` has for each value of the grid `encoding`."""
    found: Grid = table[(x - encoding.low).astype(np.int64)]
    return found


def exp_table(encoding: Encoding) -> Grid:
    """Return `rint(exp(-d * scale) * 2^30)` for every difference d of the scores' grid."""
    d = np.arange(1 << encoding.bits, dtype=np.float64)
    return np.rint(np.exp(-d * encoding.scale) * _EXP_ONE)


def softmax(scores: Grid, visible: npt.NDArray[np.bool_], table: Grid, out: Encoding) -> Grid:
    """Normalize over the last axis by table look-up; sums of the table's integers are exact.

    `visible` (broadcast to `scores`) says which keys each query may see; at least one per query.
    """
    masked = np.where(visible, scores, -np.inf)
    top = masked.max(axis=-1, keepdims=True)
    distance = np.where(visible, top - scores, 0.0).astype(np.int64)
    powers = np.where(visible, table[distance], 0.0)
    return saturate(powers / powers.sum(axis=-1, keepdims=True) / out.scale, out)


def convolve(tokens: Grid, scale: float, taps: Grid, bias: Grid | None, out: Encoding) -> Grid:
    """Sum each channel of `tokens` (taps - 1 + T, channels), weighted by its `taps` (channels, taps), in their order.

    `scale` is that of the tokens' grid.
    """
    count = len(tokens) - taps.shape[1] + 1
    total = tokens[:count] * taps[:, 0]
    for place in range(1, taps.shape[1]):
        total = total + tokens[place : place + count] * taps[:, place]
    real = total * scale
    return saturate((real if bias is None else real + bias) / out.scale, out)


def attention(
    q: Grid,
    k: Grid,
    v: Grid,
    visible: npt.NDArray[np.bool_],
    *,
    score_multiplier: float,
    table: Grid,
    mix_multiplier: float,
    scores: Encoding,
    probabilities: Encoding,
    out: Encoding,
    caps: Grid | None = None,
) -> Grid:
    """Attend from q (T, heads, d) to k and v (L, kv_heads, d); heads share keys in equal runs.

    Scores, probabilities and the mix are each quantized. `visible` is (T, L). `caps` has for each value of the scores'
    grid what its cap makes of it, on the grid of `table`.
    """
    tokens, heads, width = q.shape
    length, kv_heads, _ = k.shape
    grouped = q.reshape(tokens, kv_heads, heads // kv_heads, width).transpose(1, 2, 0, 3)
    queries = grouped.reshape(kv_heads, -1, width)
    raw = saturate(queries @ k.transpose(1, 2, 0) * score_multiplier, scores)
    if caps is not None:
        raw = looked_up(raw, scores, caps)
    shaped = raw.reshape(kv_heads, heads // kv_heads, tokens, length)
    weights = softmax(shaped, visible[None, None], table, probabilities).reshape(kv_heads, -1, length)
    mixed = saturate(weights @ v.transpose(1, 0, 2) * mix_multiplier, out)
    mixed = mixed.reshape(kv_heads, heads // kv_heads, tokens, width)
    return mixed.transpose(2, 0, 1, 3).reshape(tokens, heads * width)
