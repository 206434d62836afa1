"""Scales of quantized weights by least squares, without torch and with the same bits on every processor.

The scale that brings a group's largest weight to the end of the grid gives integers `q`; the best scale for these is
`sum(w q) / sum(q q)`, which gives other integers, and so on until nothing changes: the half-quadratic search (HQQ) of
each group for itself. Sums are made pairwise, of whole arrays: elementwise operations have one result everywhere, and
the order of their sums does not follow the width of vector registers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int8 = npt.NDArray[np.int8]
Narrow = Callable[[Float32], Float32]
"""Rounds scales to the type in which they are stored."""

_SMALLEST = np.float32(np.finfo(np.float32).eps)
_CHUNK = 1 << 18  # weights that are looked at together: they stay in the cache
_ROUNDS = 20
_FACTORS = np.linspace(0.4, 1.2, 33, dtype=np.float32)
"""Of the scale that brings the largest weight of a group to the end of the grid."""


def as_stored(values: Float32) -> Float32:
    """Return float32 numbers as they are."""
    return values


@attrs.frozen(kw_only=True)
class Grid:
    """The integers that a weight may become, `lowest` to `highest`, with a scale for each `group` inputs.

    `narrow` rounds a scale to the type in which it is stored.
    """

    lowest: int
    highest: int
    group: int
    narrow: Narrow = attrs.field(default=as_stored, eq=False)

    def integers(self, weights: Float32, scales: Float32) -> Float32:
        """Return the nearest integers of `weights` (..., group) at `scales` (...), as float32."""
        rounded: Float32 = weights / scales[..., None]
        np.rint(rounded, out=rounded)
        return np.clip(rounded, self.lowest, self.highest, out=rounded)


def fitted(weight: Float32, grid: Grid) -> tuple[Int8, Float32]:
    """Return the integers of `weight` (rows, inputs), and a scale for each group of them, (rows, inputs / group).

    Some rows of a weight give the same as those rows of the whole. A group of zeros has the smallest scale.
    """
    groups = np.ascontiguousarray(weight, np.float32).reshape(-1, grid.group)
    scales = np.empty(len(groups), np.float32)
    integers = np.empty(groups.shape, np.int8)
    step = max(1, _CHUNK // grid.group)
    for start in range(0, len(groups), step):
        chunk = groups[start : start + step]
        found = scales[start : start + step] = fitted_scales(chunk, grid)
        integers[start : start + step] = grid.integers(chunk, found)
    return integers.reshape(weight.shape), scales.reshape(len(weight), -1)


def fitted_by_importance(
    weight: Float32, importance: npt.NDArray[np.floating[Any]], grid: Grid
) -> tuple[Int8, Float32]:
    """Return what `fitted` does, at the `weighted_scales` for the `importance` (inputs) of each input."""
    integers = np.empty(weight.shape, np.int8)
    scales = np.empty((len(weight), weight.shape[1] // grid.group), np.float32)
    for start in range(0, weight.shape[1], grid.group):
        part = slice(start, start + grid.group)
        groups = np.ascontiguousarray(weight[:, part], np.float32)
        found = scales[:, start // grid.group] = weighted_scales(groups, importance[part], grid)
        integers[:, part] = grid.integers(groups, found)
    return integers, scales


def dequantized(integers: npt.NDArray[np.integer[Any]], scales: Float32) -> Float32:
    """Return the weight (rows, inputs) that integers stand for, with a scale for each group, (rows, groups)."""
    groups = integers.reshape(*scales.shape, -1) * scales[..., None].astype(np.float32)
    return np.asarray(groups.reshape(integers.shape), np.float32)


def fitted_scales(groups: Float32, grid: Grid) -> Float32:
    """Return a scale for each row of `groups` (groups, group), whatever the other rows."""
    scales = np.maximum(_folded(np.maximum, np.abs(groups)) / np.float32(-grid.lowest), _SMALLEST)
    rows = np.arange(len(groups))
    for _ in range(_ROUNDS):
        before = scales[rows]
        integers = grid.integers(groups, before)
        products = _folded(np.add, groups * integers)
        squares = _folded(np.add, np.multiply(integers, integers, out=integers))
        better = np.maximum(products / np.maximum(squares, np.float32(1.0)), _SMALLEST)
        moved = better != before
        if not moved.any():
            break
        scales[rows] = better
        rows, groups = rows[moved], groups[moved]  # what does not move any more never will
    narrowed: Float32 = grid.narrow(scales)
    return narrowed


def weighted_scales(groups: Float32, importance: npt.NDArray[np.floating[Any]], grid: Grid) -> Float32:
    """Return for each row of `groups` (groups, group) the scale, of some that follow from its largest weight, with the
    least squared error, each input's counted by its `importance` (group).

    Errors are summed in float64: another order of summation decides between equals at most.
    """
    largest = np.abs(groups).max(axis=1) / np.float32(-grid.lowest)
    scales = np.empty(len(groups), np.float32)
    least = np.full(len(groups), np.inf)
    for factor in _FACTORS:
        tried = grid.narrow(np.maximum(largest * factor, _SMALLEST))
        errors = np.square(grid.integers(groups, tried) * tried[:, None] - groups) @ importance
        better = errors < least
        scales[better], least[better] = tried[better], errors[better]
    return scales


def _folded(combine: np.ufunc, values: Float32) -> Float32:
    """Return what is left of each row when its halves are combined again and again."""
    while (width := values.shape[1]) > 1:
        half = width // 2
        rest = values[:, 2 * half :]
        values = combine(values[:, :half], values[:, half : 2 * half])
        if rest.shape[1]:
            combine(values[:, :1], rest, out=values[:, :1])
    return values[:, 0]


def bfloat16(values: Float32) -> Float32:
    """Return positive, finite float32 numbers rounded to bfloat16, half to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return (rounded & np.uint32(0xFFFF0000)).view(np.float32)


def float16(values: Float32) -> Float32:
    """Return float32 numbers rounded to float16; what is too small for it becomes the smallest of its numbers."""
    return np.maximum(values, np.float32(2.0**-24)).astype(np.float16).astype(np.float32)
