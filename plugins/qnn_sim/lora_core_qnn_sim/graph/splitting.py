"""Splitting of outlier channels: the exact change that keeps a massive activation inside an MLP off its 16-bit grid.

Rotation cannot reach the product of gate and up projection, where a few channels of one token are a thousand times
larger than the rest (SmolLM2-135M, layer 11: 3,065 beside 2). A channel split into k copies is k times smaller in each:

    gate rows:  g, ..., g       up rows:  u/k, ..., u/k       down columns:  d, ..., d

silu(g) * (u/k) summed over the copies through d is the channel as it was (Zhao et al., arXiv 1901.09504). Weights keep
their precision, since rows of up have scales of their own and columns of down only repeat; moving the size into down
instead (cross-layer equalization) would coarsen all its rows. LoRA matrices are split with the layers they belong to.

A split is stored as the channel that each column of the wider layer comes from: 0, 1, ... and then the copies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Splits = Mapping[str, npt.NDArray[np.int32]]
PRODUCT = ".mul.output"
# Splitting whatever is largest shrinks the range of what ordinary tokens vary in, and new prompts then leave it: with
# 32 copies in every layer the activations of SmolLM2 fell from 35.1 to 27.1 dB.
_MASSIVE = 32.0
_MOST_COPIES = 32


def find_splits(peaks: Mapping[str, Array]) -> dict[str, npt.NDArray[np.int32]]:
    """Return the splits, by MLP (`layers.11.mlp`), that bring every channel to 32 times its layer's median channel.

    `peaks` are the largest magnitudes by channel of each product in an MLP. A layer gets at most 32 copies; layers
    without massive channels get no entry.
    """
    splits = {}
    for name, peak in peaks.items():
        limit = _MASSIVE * float(np.median(peak))
        counts, extra = np.ones(len(peak), np.int64), list[int]()
        while len(extra) < _MOST_COPIES and (peak / counts).max() > limit > 0:
            extra.append(int(np.argmax(peak / counts)))
            counts[extra[-1]] += 1
        if extra:
            channels = np.concatenate([np.arange(len(peak)), np.sort(extra)])
            splits[name.removesuffix(PRODUCT)] = channels.astype(np.int32)
    return splits


@attrs.frozen(kw_only=True)
class SplitBase(Mapping[str, Array]):
    """The weights of the wider base: each is made when it is asked for and kept by nobody."""

    weights: Mapping[str, Array]
    splits: Splits

    def __getitem__(self, name: str) -> Array:
        """Read one weight and split it."""
        layer = name.rpartition(".")[0]
        rows = split_b(layer, self.weights[name], self.splits)
        return split_a(layer, rows, self.splits) if rows.ndim == 2 else rows

    def __contains__(self, name: object) -> bool:
        """Say whether there is such a weight, without reading it."""
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        """Name every weight."""
        return iter(self.weights)

    def __len__(self) -> int:
        """Count the weights."""
        return len(self.weights)


def split_moments(moments: Mapping[str, Array], splits: Splits) -> dict[str, Array]:
    """Return the second moments of the wider base's activations."""
    out = dict(moments)
    for block, channels in splits.items():
        shares = 1.0 / copies(channels)
        out[f"{block}{PRODUCT}"] = moments[f"{block}{PRODUCT}"][np.ix_(channels, channels)] * np.outer(shares, shares)
    return out


def split_a(layer: str, a: Array, splits: Splits) -> Array:
    """Return a matrix that reads `layer`'s input, with its columns repeated if that is split."""
    block, _, projection = layer.rpartition(".")
    return np.ascontiguousarray(a[:, splits[block]]) if projection == "down_proj" and block in splits else a


def split_b(layer: str, b: Array, splits: Splits) -> Array:
    """Return a matrix or bias that writes `layer`'s output, with its rows repeated if that is split."""
    block, _, projection = layer.rpartition(".")
    if block in splits and projection == "gate_up_proj":
        gate, up = np.split(b, 2)
        return np.concatenate([split_b(f"{block}.gate_proj", gate, splits), split_b(f"{block}.up_proj", up, splits)])
    if block not in splits or projection not in ("gate_proj", "up_proj"):
        return b
    rows = b[splits[block]]
    if projection == "up_proj":
        rows = rows / copies(splits[block]).astype(np.float32).reshape(-1, *[1] * (b.ndim - 1))
    return rows


def copies(channels: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return, for each column of a split layer, how many copies its channel has."""
    counts: npt.NDArray[np.int64] = np.bincount(channels)[channels]
    return counts
