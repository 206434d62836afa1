"""Powers, cosines and sines with the same bits on every processor.

Vector libraries (torch's SLEEF, MKL, numpy's loops) and C libraries choose their code by processor and promise an error
of about a unit in the last place, not the same result: `1e6 ** (24 / 128)` in float32 is another number with AVX2 than
without. What is stored must not depend on that. Powers come from decimal arithmetic, which is made of integers. Cosines
and sines are computed in double precision and rounded once to float32; the few that lie so near to the middle of two
float32 numbers that a library's error would decide are computed again in decimal.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]

_PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534211706798")
# Angles have up to 50 bits before and after the point, results are wanted to 17 digits: 60 leave more than 20 to spare.
_CONTEXT = Context(prec=60, rounding=ROUND_HALF_EVEN)
# numpy's and every C library's cosine in double precision is within 4 units in the last place (2^-50); this is 2^-46.
_MARGIN = 2.0**-46


def powers(base: float, exponents: Sequence[float]) -> Float32:
    """Return `base` (positive) to each of `exponents`, float32, rounded from more digits than can matter."""
    with localcontext(_CONTEXT):
        return np.array([float(Decimal(base) ** Decimal(exponent)) for exponent in exponents], np.float64).astype(
            np.float32
        )


def cosines(angles: Float32) -> Float32:
    """Return the cosine of each angle (radians), correctly rounded to float32."""
    wide = angles.astype(np.float64)
    return _rounded(wide, np.cos(wide), Decimal(0))


def sines(angles: Float32) -> Float32:
    """Return the sine of each angle (radians), correctly rounded to float32."""
    wide = angles.astype(np.float64)
    return _rounded(wide, np.sin(wide), _PI / 2)


def cosines_of_turns(count: int) -> npt.NDArray[np.float64]:
    """Return `cos(2 pi j / count)` for j = 0 to `count`, exclusive, in double precision."""
    with localcontext(_CONTEXT):
        return np.array([float(_cosine(2 * _PI * j / count)) for j in range(count)])


def _rounded(angles: npt.NDArray[np.float64], near: npt.NDArray[np.float64], shift: Decimal) -> Float32:
    """Round `near`, about the cosines of `angles - shift`, to float32."""
    low, high = (near * factor for factor in (1.0 - _MARGIN, 1.0 + _MARGIN))
    rounded: Float32 = low.astype(np.float32)
    with localcontext(_CONTEXT):
        for index in zip(*np.nonzero(rounded != high.astype(np.float32)), strict=True):
            # Twice rounded (to double, to float32), but the same on every processor.
            rounded[index] = np.float32(float(_cosine(Decimal(float(angles[index])) - shift)))
    return rounded


def _cosine(angle: Decimal) -> Decimal:
    """Return a cosine by its Taylor series, in the digits of the current context."""
    square = (angle % (2 * _PI)) ** 2
    term, total, number = Decimal(1), Decimal(0), 0
    while total + term != total:
        total += term
        number += 2
        term = -term * square / (number * (number - 1))
    return total
