"""Rounding that makes up for its own error: columns of a matrix are rounded one after another, and what rounding one
costs is made up for in those not yet rounded, in the metric of the inputs' second moments (GPTQ, arXiv 2210.17323).

All of it is in float64: the order of summation then moves what is rounded by 1e-13 of a step, so that equal inputs give
equal integers on every processor but for a chance of about one in a million for a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Scales = Callable[[int, Array], Array]
"""The scales (rows) of the group that begins at an input, given its weights (inputs of the group, rows) as they have
become."""

_BLOCK = 128
_DAMPING = 0.01


def inverse_factor(moment: Array, damping: float = _DAMPING) -> Array:
    """Return the upper Cholesky factor of the inverse of a second moment (inputs, inputs), to whose diagonal `damping`
    times its mean is added.
    """
    damped = moment + np.eye(len(moment)) * (damping * float(np.trace(moment)) / len(moment) + 1e-12)
    inverse = np.linalg.inv(damped)
    factor: Array = np.linalg.cholesky((inverse + inverse.T) / 2).T
    return factor


def compensated(
    weight: Array, factor: Array, scales: Scales, *, group: int, lowest: int, highest: int
) -> tuple[npt.NDArray[np.int8], Array]:
    """Return the integers of `weight` (rows, inputs), int8 from `lowest` to `highest`, and the scales that `scales`
    gave for each group of `group` inputs, (rows, groups), float64.

    `factor` is the `inverse_factor` of the inputs' moment.
    """
    # Columns are contiguous rows here.
    columns = np.ascontiguousarray(weight.T, np.float64)
    inputs, rows = columns.shape
    integers = np.empty((inputs, rows), np.int8)
    given = np.empty((inputs // group, rows))
    block = max(_BLOCK // group, 1) * group if group < inputs else _BLOCK
    for begin in range(0, inputs, block):
        end = min(begin + block, inputs)
        errors = np.empty((end - begin, rows))
        for j in range(begin, end):
            if j % group == 0:
                given[j // group] = scales(j, columns[j : j + group])
            scale = given[j // group]
            rounded = np.clip(np.rint(columns[j] / scale), lowest, highest)
            integers[j] = rounded
            error = (columns[j] - rounded * scale) / factor[j, j]
            columns[j + 1 : end] -= factor[j, j + 1 : end, None] * error
            errors[j - begin] = error
        columns[end:] -= factor[begin:end, end:].T @ errors
    return np.ascontiguousarray(integers.T), np.ascontiguousarray(given.T)
