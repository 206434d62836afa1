"""Tensors that follow from an adapter's and the base's together, computed when they are read.

Everything is computed in double precision, elementwise or by sums of a fixed order, and rounded once: the same bytes
on every processor, which a matrix product by a BLAS does not give.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class DoraGain:
    """What DoRA multiplies each output of the base's layer with: its magnitude over the norm of the adapted row."""

    magnitude: LazyTensor
    weight: LazyTensor
    a: LazyTensor
    b: LazyTensor
    scaling: float
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The key of the magnitudes."""
        return self.magnitude.name

    @property
    def path(self) -> Path:
        """The file of the magnitudes."""
        return self.magnitude.path

    @property
    def shape(self) -> tuple[int, ...]:
        """One gain for each output, as a column."""
        return (self.weight.shape[0], 1)

    def read(self) -> npt.NDArray[np.float32]:
        """Return `m / |W + scaling * B A|` row by row."""
        rows = self.weight.read().astype(np.float64)
        for row, column in zip(self.a.read(), self.b.read().T, strict=True):
            rows += np.multiply.outer(column.astype(np.float64) * self.scaling, row.astype(np.float64))
        norms = np.sqrt(np.add.reduce(rows * rows, axis=1))
        gains: npt.NDArray[np.float32] = (self.magnitude.read().reshape(-1) / norms).astype(np.float32)
        return gains[:, None]


@attrs.frozen(kw_only=True)
class GainedRows:
    """B of a DoRA adapter, each row times its gain."""

    stored: LazyTensor
    gain: DoraGain
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The key of B."""
        return self.stored.name

    @property
    def path(self) -> Path:
        """The file of B."""
        return self.stored.path

    @property
    def shape(self) -> tuple[int, ...]:
        """That of B."""
        return self.stored.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return B with its rows multiplied."""
        return self.stored.read() * self.gain.read()


@attrs.frozen(kw_only=True)
class BiasShift:
    """What a trained bias adds to the base's, and what a gain took away from it: `trained - gain * bias`.

    `trained` is None for a bias that was not trained, `bias` for a layer that has none.
    """

    trained: LazyTensor | None
    bias: LazyTensor | None
    gain: DoraGain | None
    width: int
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The key of the bias."""
        return (self.trained or self.bias or self._gain()).name

    @property
    def path(self) -> Path:
        """The file of the bias."""
        return (self.trained or self.bias or self._gain()).path

    @property
    def shape(self) -> tuple[int, ...]:
        """One number for each output, as a column."""
        return (self.width, 1)

    def read(self) -> npt.NDArray[np.float32]:
        """Return the difference."""
        old = np.zeros(self.width) if self.bias is None else self.bias.read().astype(np.float64)
        new = old if self.trained is None else self.trained.read().reshape(-1).astype(np.float64)
        kept = old if self.gain is None else old * self.gain.read()[:, 0].astype(np.float64)
        shift: npt.NDArray[np.float32] = (new - kept).astype(np.float32)
        return shift[:, None]

    def _gain(self) -> LazyTensor:
        assert self.gain is not None, "a shift has a reason"
        return self.gain


@attrs.frozen(kw_only=True)
class WeightDelta:
    """What a trained weight adds to the base's."""

    trained: LazyTensor
    weight: LazyTensor
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The key of the trained weight."""
        return self.trained.name

    @property
    def path(self) -> Path:
        """The file of the trained weight."""
        return self.trained.path

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the weight."""
        return self.trained.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return the difference, one float32 subtraction for each number."""
        return self.trained.read() - self.weight.read()
