"""Rotation of the residual stream: the exact change of basis that lets 16 bits hold massive activations.

Decoders keep a few channels of one token thousands of times larger than the rest (SmolLM2-135M: 27,000 against
single digits from layer 11 on); a per-tensor grid then has a step that swallows the others, and clipping destroys the
model. Multiplying the stream by an orthogonal matrix R spreads such a value over all channels. RMSNorm without its gain
commutes with R, so the gain g is folded into the matrices that follow, and with row vectors

    reads of the stream (q, k, v, gate, up, head, in):  W' = W diag(g) R,    A' = A diag(g) R
    writes to the stream (o, down, embedding, out):     W' = R^T W,          B' = R^T B

give the same function (QuaRot, arXiv 2404.00456; SpinQuant, arXiv 2405.16406). R is a Kronecker product of small
orthogonal DCT-II and Hadamard matrices that depends on the width alone, so nothing is stored. A tied head becomes a
matrix of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.elementary import cosines_of_turns

Array = npt.NDArray[Any]
_READS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "in_proj", "gate_proj", "up_proj", "gate_up_proj", "lm_head")
_WRITES = ("o_proj", "out_proj", "down_proj")
_HEAD = "lm_head.weight"
_LARGEST_HADAMARD = 64
_CHUNK = 1 << 16  # elements that are rotated at a time: they stay in the cache


def sizes(width: int) -> tuple[int, ...]:
    """Return the sizes of R's factors, whose product is `width`: the odd one, if any, is a DCT-II, others Hadamard."""
    power = width & -width
    found = [width // power] if power != width else []
    while power > 1:
        found.append(min(power, _LARGEST_HADAMARD))
        power //= found[-1]
    return tuple(found)


def rotate(rows: Array) -> Array:
    """Return `rows @ R` (float64): each row is a vector in the stream's basis.

    Every sum is made of elementwise operations in one fixed order and not by a BLAS, whose order follows the processor:
    what comes out is rounded to float32 and stored.
    """
    given = np.asarray(rows)
    flat = given.reshape(-1, given.shape[-1])
    out = np.empty(flat.shape)
    step = max(1, _CHUNK // flat.shape[1])
    for begin in range(0, len(flat), step):
        out[begin : begin + step] = _rotated(flat[begin : begin + step].T.astype(np.float64, order="C")).T
    return out.reshape(given.shape)


def _rotated(columns: Array) -> Array:
    """Rotate vectors that are columns: what is added up then lies side by side, whatever the size of a factor."""
    width, count = columns.shape
    for size in sizes(width):
        blocks = columns.reshape(width // size, size, count)
        turned = _times_dct(blocks) if size % 2 else _times_hadamard(blocks)
        columns = np.ascontiguousarray(turned.swapaxes(0, 1)).reshape(width, count)
    return columns


@attrs.frozen(kw_only=True)
class RotatedBase(Mapping[str, Array]):
    """The float32 weights of the rotated base, without gains: each is made when it is asked for and kept by nobody."""

    weights: Mapping[str, Array]
    gains: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        """Read one weight and rotate it."""
        if name == _HEAD and name not in self.weights:
            return rotated_matrix("lm_head", self.weights["embed_tokens.weight"], self.gains)
        array = self.weights[name]
        layer, _, last = name.rpartition(".")
        if last != "bias":
            return rotated_matrix(layer, array, self.gains)
        return rotate(array).astype(np.float32) if layer.endswith(_WRITES) else array

    def rows(self, name: str, numbers: npt.NDArray[np.int64]) -> Array:
        """Read some rows of the embedding and rotate them alone."""
        return rotated_matrix("embed_tokens", self.weights[name][numbers], self.gains)

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a weight, without reading it."""
        return name == _HEAD or (name in self.weights and not _is_gain(str(name)))

    def __iter__(self) -> Iterator[str]:
        """Name every weight."""
        yield from (name for name in self.weights if not _is_gain(name))
        if _HEAD not in self.weights:
            yield _HEAD

    def __len__(self) -> int:
        """Count the weights."""
        return sum(1 for _ in self)


def _is_gain(name: str) -> bool:
    return name.endswith(("layernorm.weight", "norm.weight")) and "_norm." not in name


def rotated_base(weights: Mapping[str, Array], n_layers: int) -> tuple[RotatedBase, dict[str, Array]]:
    """Return the rotated base, and its gains by the layer that reads them."""
    gains = {
        f"layers.{n}.{kind}": weights[f"layers.{n}.{norm}.weight"]
        for n in range(n_layers)
        for kind, norm in ((_mixer(weights, n), "input_layernorm"), ("mlp", "post_attention_layernorm"))
    }
    gains["lm_head"] = weights["norm.weight"]
    return RotatedBase(weights=weights, gains=gains), gains


def _mixer(weights: Mapping[str, Array], number: int) -> str:
    return "conv" if f"layers.{number}.conv.in_proj.weight" in weights else "self_attn"


def rotated_matrix(layer: str, matrix: Array, gains: Mapping[str, Array]) -> Array:
    """Return the static matrix of `layer` in the rotated basis (float32); others than reads and writes unchanged."""
    if layer == "embed_tokens":
        return rotate(matrix).astype(np.float32)
    if layer.endswith(_READS):
        return rotated_a(layer, matrix, gains)
    return rotated_b(layer, matrix)


def rotated_a(layer: str, a: Array, gains: Mapping[str, Array]) -> Array:
    """Return a matrix that reads `layer`'s input: rotated if that is the stream."""
    if not layer.endswith(_READS):
        return a
    gain = gains[layer if layer == "lm_head" else layer.rpartition(".")[0]]
    return rotate(a.astype(np.float64) * gain).astype(np.float32)


def rotated_b(layer: str, b: Array) -> Array:
    """Return a matrix that writes `layer`'s output: rotated if that is the stream."""
    if not layer.endswith(_WRITES):
        return b
    return np.ascontiguousarray(rotate(b.T).T).astype(np.float32)


def _times_hadamard(blocks: Array) -> Array:
    """Multiply the middle axis by Sylvester's Hadamard matrix, scaled to be orthogonal."""
    number, size, count = blocks.shape
    half, out, spare = size // 2, blocks, np.empty_like(blocks)
    while half:
        pairs, into = (each.reshape(number, -1, 2, half * count) for each in (out, spare))
        np.add(pairs[:, :, 0], pairs[:, :, 1], out=into[:, :, 0])
        np.subtract(pairs[:, :, 0], pairs[:, :, 1], out=into[:, :, 1])
        out, spare = spare, np.empty_like(blocks) if out is blocks else out
        half //= 2
    scaled: Array = out * (1.0 / np.sqrt(size))
    return scaled


def _times_dct(blocks: Array) -> Array:
    """Multiply the middle axis by the transpose of the orthogonal DCT-II."""
    matrix, product = _dct(blocks.shape[1]), np.empty_like(blocks)
    out: Array = blocks[:, 0, None] * matrix[0, :, None]
    for index in range(1, len(matrix)):
        out += np.multiply(blocks[:, index, None], matrix[index, :, None], out=product)
    return out


@cache
def _dct(size: int) -> Array:
    """Return the transposed matrix: a row for each input, a column for each frequency."""
    n, k = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix: Array = cosines_of_turns(4 * size)[(2 * n + 1) * k % (4 * size)] * np.sqrt(2.0 / size)
    matrix[:, 0] /= np.sqrt(2.0)
    return matrix
