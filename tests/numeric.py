"""How far two computations of the same numbers may be apart on any processor: from the number format and the sizes.

A sum of n products is rounded n times, and every processor, library, number of threads and alignment may add in an
order of its own. Each rounding is off by at most `unit` times a partial sum, which is no larger than the spread (the
standard deviation) of the results; so it is random with a standard deviation of at most unit / sqrt(3) in units of the
spread. After `steps` roundings between input and result these add up to sqrt(steps) times that, and two computations
are apart by sqrt(2) times that. Of some 100,000 results the largest is at 4.5 standard deviations. Together:

    apart <= 4.5 * sqrt(2) / sqrt(3) * unit * sqrt(steps) = 3.7 * unit * sqrt(steps)   (of the spread)

Four times as much is allowed, for what follows a sum and enlarges its error against the spread. Measured with kernels
for AVX2, SSE4.2 and no vectors at all: at most a third of what is allowed. Results that lie further out than 4.5
standard deviations, such as sums of few products, or that have a mean, are rounded at their own size: there a fraction
1 / 4.5 of the largest stands for the spread.

A model whose attention scores reach hundreds has no such bound: softmax picks a single key, and float32 itself is a
hundredth of the spread away from float64. Such a model tests nothing but that two kernels are the same.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

FLOAT32 = 2.0**-24
FLOAT16 = 2.0**-11
_ALLOWED = 16.0
_LARGEST = 4.5


def tolerance(steps: float, *, unit: float = FLOAT32) -> float:
    """Return how far apart two computations may be, in units of the spread, after `steps` roundings to `unit`.

    For float32 `steps` are the lengths of all sums between input and result, added up. Where a sum is kept in float32
    and rounded once to float16, it counts once, with the unit of float16.
    """
    return _ALLOWED * unit * math.sqrt(steps)


def decoder_steps(*, layers: int, hidden: int, inner: int, context: int, rank: int = 0) -> int:
    """Return the length of all sums in a decoder, one after the other, each LoRA of `rank` counted with its layer.

    In a layer: a norm, q (k and v beside it), scores, the mix over `context` values, o, a norm, gate (up beside it) and
    down; at the end a norm and the output head. A head is at most as wide as the hidden state.
    """
    widths = {"norm": 2 * hidden, "q": hidden, "scores": hidden, "mix": context, "o": hidden, "gate": hidden}
    return layers * (sum(widths.values()) + inner + 4 * rank) + 2 * hidden


def decoder_tolerance(*, layers: int, hidden: int, inner: int, context: int, rank: int = 0) -> float:
    """Return the tolerance of a small decoder's logits in float32, in units of their spread."""
    steps = decoder_steps(layers=layers, hidden=hidden, inner=inner, context=context, rank=rank)
    return tolerance(steps)


def apart(found: Any, expected: Any) -> float:
    """Return the largest difference of two arrays or tensors of one shape, in units of the spread of `expected`.

    Where `expected` is zero throughout, any difference is infinite. So is one that is no number.
    """
    ours, theirs = _doubles(found), _doubles(expected)
    assert ours.shape == theirs.shape, f"shapes {ours.shape} and {theirs.shape}"
    largest = float(np.abs(ours - theirs).max())
    if largest == 0:
        return 0.0
    size = max(float(theirs.std()), float(np.abs(theirs).max()) / _LARGEST)
    return largest / size if size > 0 and math.isfinite(largest) else math.inf


def _doubles(values: Any) -> npt.NDArray[np.float64]:
    detached = values.detach() if hasattr(values, "detach") else values
    return np.asarray(detached.float() if hasattr(detached, "float") else detached).astype(np.float64)
