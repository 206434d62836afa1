"""Observed ranges of activations and the grids made of them."""

from __future__ import annotations

import math
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.encodings.grid import Encoding, asymmetric

Array = npt.NDArray[Any]
_SNAP_BITS = 12
_SAMPLES = 1 << 14
_BULK = 0.999
_MASSIVE = 50.0
_MASSIVE_HEADROOM = 1.1
_CLIPS = tuple(np.linspace(1.0, 0.3, 29))


def snap(value: float) -> float:
    """Round a magnitude up to 12 significant bits: far coarser than summation noise, far finer than a range matters."""
    if value == 0.0:
        return 0.0
    mantissa, exponent = math.frexp(abs(value))
    # Noise just above an exactly representable mantissa must not round up a step.
    steps = math.ceil(mantissa * (1 << _SNAP_BITS) - 1e-6)
    return math.copysign(math.ldexp(steps / (1 << _SNAP_BITS), exponent), value)


@attrs.define(kw_only=True)
class Observed:
    """The range of one activation, the magnitude that all but a thousandth of it stays below, and, for narrow grids, a
    sample of its values.
    """

    minimum: float = 0.0
    maximum: float = 0.0
    bulk: float = 0.0
    sample: list[Array] = attrs.field(factory=list)


@attrs.define(kw_only=True)
class RangeObserver:
    """Collects the ranges of the activations in `bits` (name → bits); others are ignored.

    Grids of 16 bits take the full range, `headroom` wider, since unseen prompts reach further: with SmolLM2 and an
    adapter, 1.1 left 165 tensors clipping on new prompts and 95.5% top-1 agreement, 1.6 left 3 and 99.1%, at the price
    of half a bit. Narrower grids clip where the squared error over the sample is least.
    """

    bits: dict[str, int]
    headroom: float = 1.6
    _seen: dict[str, Observed] = attrs.field(factory=dict, init=False)

    def __call__(self, name: str, value: Array) -> None:
        """Note the values of an activation."""
        if name not in self.bits or value.size == 0:
            return
        observed = self._seen.setdefault(name, Observed())
        observed.minimum = min(observed.minimum, float(value.min()))
        observed.maximum = max(observed.maximum, float(value.max()))
        flat = value.reshape(-1)
        sample = flat[:: max(1, flat.size // _SAMPLES)].astype(np.float32)
        observed.bulk = max(observed.bulk, float(np.quantile(np.abs(sample), _BULK)))
        if self.bits[name] < 16:
            observed.sample.append(sample)

    def encodings(self) -> dict[str, Encoding]:
        """Return a grid for every activation in `bits`; one never seen gets the smallest."""
        return {name: self._grid(name, bits) for name, bits in self.bits.items()}

    def _grid(self, name: str, bits: int) -> Encoding:
        if name.endswith("softmax.output"):
            return asymmetric(0.0, 1.0, bits)
        observed = self._seen.get(name, Observed())
        low, high = snap(observed.minimum), snap(observed.maximum)
        if bits >= 16:
            # A massive activation (one channel of the first token) hardly varies between prompts, and room for more
            # would be taken from all other values, which are hundreds of times smaller.
            massive = max(-low, high) > _MASSIVE * observed.bulk
            room = _MASSIVE_HEADROOM if massive else self.headroom
            return asymmetric(snap(low * room), snap(high * room), bits)
        if not observed.sample:
            return asymmetric(low, high, bits)
        return _least_error(np.concatenate(observed.sample).astype(np.float64), low, high, bits)


def _least_error(sample: Array, low: float, high: float, bits: int) -> Encoding:
    best, best_error = asymmetric(low, high, bits), math.inf
    for clip in _CLIPS:
        grid = asymmetric(low * clip, high * clip, bits)
        error = float(np.square(grid.dequantize(grid.quantize(sample)) - sample).mean())
        # A clip must win clearly: equal inputs then choose alike whatever the last bits.
        if error < best_error * 0.999:
            best, best_error = grid, error
    return best
