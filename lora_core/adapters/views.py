"""Stored tensors seen another way: how formats that arrange their factors otherwise become A and B."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class TurnedTensor:
    """A matrix with its axes exchanged (a `LazyTensor`)."""

    stored: LazyTensor

    @property
    def name(self) -> str:
        """The key of the stored matrix."""
        return self.stored.name

    @property
    def dtype(self) -> str:
        """The type it is stored in."""
        return self.stored.dtype

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.stored.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape, backwards."""
        return self.stored.shape[::-1]

    def read(self) -> npt.NDArray[np.float32]:
        """Return the matrix turned, C-contiguous."""
        return np.ascontiguousarray(self.stored.read().T)


@attrs.frozen(kw_only=True)
class ReorderedTensor:
    """A tensor with its rows in another order (a `LazyTensor`): row i is the stored row `order[i]`."""

    stored: LazyTensor
    order: tuple[int, ...]

    @property
    def name(self) -> str:
        """The key of the stored tensor."""
        return self.stored.name

    @property
    def dtype(self) -> str:
        """The type it is stored in."""
        return self.stored.dtype

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.stored.path

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape."""
        return self.stored.shape

    def read(self) -> npt.NDArray[np.float32]:
        """Return the tensor with its rows reordered, C-contiguous."""
        return np.ascontiguousarray(self.stored.read()[list(self.order)])
