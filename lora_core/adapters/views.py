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
class View:
    """What is computed from `stored` when it is read (a `LazyTensor`): under its key, of its file, type and shape."""

    stored: LazyTensor

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
        """Return the stored tensor."""
        return self.stored.read()


@attrs.frozen(kw_only=True)
class TurnedTensor(View):
    """A matrix with its axes exchanged."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored shape, backwards."""
        return self.stored.shape[::-1]

    def read(self) -> npt.NDArray[np.float32]:
        """Return the matrix turned, C-contiguous."""
        return np.ascontiguousarray(self.stored.read().T)


@attrs.frozen(kw_only=True)
class ReorderedTensor(View):
    """A tensor with its rows in another order: row i is the stored row `order[i]`."""

    order: tuple[int, ...]

    def read(self) -> npt.NDArray[np.float32]:
        """Return the tensor with its rows reordered, C-contiguous."""
        return np.ascontiguousarray(self.stored.read()[list(self.order)])


@attrs.frozen(kw_only=True)
class ComputedTensor(View):
    """A view whose numbers are computed, in float32 whatever is stored."""

    @property
    def dtype(self) -> str:
        """Float32."""
        return "F32"
