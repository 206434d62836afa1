"""Tensors that follow from an adapter's and the base's together, computed when they are read.

Everything is computed in double precision, elementwise or by sums of a fixed order, and rounded once: the same bytes
on every processor, which a matrix product by a BLAS does not give.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.views import ComputedTensor
from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class DoraGain(ComputedTensor):
    """What DoRA multiplies each output of the base's layer with: its magnitude (`stored`) over the norm of the adapted
    row.
    """

    weight: LazyTensor
    a: LazyTensor
    b: LazyTensor
    scaling: float

    @property
    def shape(self) -> tuple[int, ...]:
        """One gain for each output, as a column."""
        return (self.weight.shape[0], 1)

    def read(self) -> npt.NDArray[np.float32]:
        """Return `m / |W + scaling * B A|` row by row."""
        return self._column

    @cached_property
    def _column(self) -> npt.NDArray[np.float32]:
        # Read for the gain itself, for B and for the bias; a column is small, and costs a product of matrices.
        rows = self.weight.read().astype(np.float64)
        for row, column in zip(self.a.read(), self.b.read().T, strict=True):
            rows += np.multiply.outer(column.astype(np.float64) * self.scaling, row.astype(np.float64))
        norms = np.sqrt(np.add.reduce(rows * rows, axis=1))
        gains: npt.NDArray[np.float32] = (self.stored.read().reshape(-1) / norms).astype(np.float32)
        return gains[:, None]


@attrs.frozen(kw_only=True)
class GainedRows(ComputedTensor):
    """B of a DoRA adapter (`stored`), each row times its gain."""

    gain: DoraGain

    def read(self) -> npt.NDArray[np.float32]:
        """Return B with its rows multiplied."""
        return self.stored.read() * self.gain.read()


@attrs.frozen(kw_only=True)
class BiasShift(ComputedTensor):
    """What a trained bias adds to the base's, and what a gain took away from it: `trained - gain * bias`.

    `stored` is the trained bias, or `bias` itself if it was not trained; `bias` is None for a layer that has none.
    """

    bias: LazyTensor | None
    gain: DoraGain | None
    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """One number for each output, as a column."""
        return (self.width, 1)

    def read(self) -> npt.NDArray[np.float32]:
        """Return the difference."""
        new = self.stored.read().reshape(-1).astype(np.float64)
        old = np.zeros(self.width) if self.bias is None else self.bias.read().astype(np.float64)
        kept = old if self.gain is None else old * self.gain.read()[:, 0].astype(np.float64)
        shift: npt.NDArray[np.float32] = (new - kept).astype(np.float32)
        return shift[:, None]


@attrs.frozen(kw_only=True)
class WeightDelta(ComputedTensor):
    """What a trained weight (`stored`) adds to the base's."""

    weight: LazyTensor

    def read(self) -> npt.NDArray[np.float32]:
        """Return the difference, one float32 subtraction for each number."""
        return self.stored.read() - self.weight.read()
