"""One integer grid: `real = (q + offset) * scale` with q in [0, 2^bits - 1]."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
_SMALLEST_RANGE = 1e-6


@attrs.frozen(kw_only=True)
class Encoding:
    """The per-tensor grid of an activation or of a LoRA weight.

    `scale` is exactly representable as float32, as it is stored. `offset` is at most 0; a symmetric signed grid has
    offset -2^(bits-1). Values are computed with *centred* integers c = q + offset, so that real = c * scale.
    """

    bits: int
    scale: float
    offset: int
    symmetric: bool = False

    @property
    def low(self) -> int:
        """The smallest centred integer."""
        return self.offset

    @property
    def high(self) -> int:
        """The largest centred integer."""
        return self.offset + (1 << self.bits) - 1

    @property
    def minimum(self) -> float:
        """The smallest real value."""
        return self.low * self.scale

    @property
    def maximum(self) -> float:
        """The largest real value."""
        return self.high * self.scale

    def quantize(self, real: Array) -> Array:
        """Return the nearest centred integers (ties to even) as float64, saturated to the grid."""
        scaled = np.asarray(real, np.float64) / self.scale
        return np.clip(np.rint(scaled), self.low, self.high)

    def dequantize(self, centred: Array) -> Array:
        """Return the real values of centred integers, as float64."""
        return np.asarray(centred, np.float64) * self.scale


def asymmetric(minimum: float, maximum: float, bits: int) -> Encoding:
    """Return the grid that covers [minimum, maximum] and has an exact zero."""
    low, high = min(float(minimum), 0.0), max(float(maximum), 0.0)
    if high - low < _SMALLEST_RANGE:
        high = low + _SMALLEST_RANGE
    scale = float(np.float32((high - low) / ((1 << bits) - 1)))
    offset = int(np.clip(np.rint(low / scale), -((1 << bits) - 1), 0))
    return Encoding(bits=bits, scale=scale, offset=offset)


def symmetric(magnitude: float, bits: int) -> Encoding:
    """Return the symmetric signed grid whose largest value is `magnitude`."""
    scale = float(np.float32(max(float(magnitude), _SMALLEST_RANGE) / ((1 << (bits - 1)) - 1)))
    return Encoding(bits=bits, scale=scale, offset=-(1 << (bits - 1)), symmetric=True)


def covering(encodings: Iterable[Encoding]) -> Encoding:
    """Return the grid that covers all of some grids of one tensor: what members of a group share."""
    grids = list(encodings)
    if grids[0].symmetric:
        return symmetric(max(grid.maximum for grid in grids), grids[0].bits)
    if all(grid == grids[0] for grid in grids):
        return grids[0]
    return asymmetric(min(g.minimum for g in grids), max(g.maximum for g in grids), grids[0].bits)


@attrs.frozen(kw_only=True, eq=False)
class ChannelWeight:
    """A static weight: signed integers of shape (out, in) and one scale per output channel (float32)."""

    bits: int
    values: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]

    def dequantized(self) -> npt.NDArray[np.float32]:
        """Return the real weight as float32."""
        return self.values.astype(np.float32) * self.scales[:, None]


def quantize_channels(weight: Array, bits: int) -> ChannelWeight:
    """Quantize per output channel, symmetric; for 4 bits the scale with the least squared error is searched.

    The search tries 16 fractions of the largest magnitude: at 4 bits clipping the tails loses less than a coarse step.
    """
    weight = np.asarray(weight, np.float32)
    top = (1 << (bits - 1)) - 1
    magnitude = np.maximum(np.abs(weight).max(axis=1), np.float32(1e-12))
    best_scale = (magnitude / top).astype(np.float32)
    if bits <= 4:
        best_error = np.full(weight.shape[0], np.inf)
        for fraction in np.linspace(1.0, 0.4, 16, dtype=np.float32):
            scale = (magnitude * fraction / top).astype(np.float32)
            rounded = np.clip(np.rint(weight / scale[:, None]), -top, top)
            # Squares of float32 numbers, in float64: the order of summation decides between equals at most.
            error = np.square(rounded * scale[:, None] - weight).sum(axis=1, dtype=np.float64)
            better = error < best_error
            best_error = np.where(better, error, best_error)
            best_scale = np.where(better, scale, best_scale)
    values = np.clip(np.rint(weight / best_scale[:, None]), -top, top).astype(np.int8)
    return ChannelWeight(bits=bits, values=values, scales=best_scale)
