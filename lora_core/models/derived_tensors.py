"""Stored tensors that a model reads otherwise than they are stored."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from lora_core.adapters.views import ComputedTensor
from lora_core.tensors import LazyTensor, StoredTensor

if TYPE_CHECKING:
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class OffsetTensor(ComputedTensor):
    """A tensor with `offset` added to each value, in float32."""

    offset: float

    def read(self) -> npt.NDArray[np.float32]:
        """Return its values."""
        return self.stored.read() + np.float32(self.offset)


@attrs.frozen(kw_only=True)
class LastIndexTensor(ComputedTensor):
    """The values of a tensor at one place of its last axis, as a vector called `name`."""

    name: str
    index: int

    @property
    def shape(self) -> tuple[int, ...]:
        """As many as the stored tensor has rows, which have one value for each place."""
        return (self.stored.shape[0],)

    def read(self) -> npt.NDArray[np.float32]:
        """Return its values."""
        return np.ascontiguousarray(self.stored.read().reshape(self.shape[0], -1)[:, self.index])


@attrs.frozen(kw_only=True)
class StackedTensor:
    """Matrices of one shape as one tensor called `name` (a `LazyTensor`), in float32; transposed if it `turns` them."""

    name: str
    matrices: tuple[LazyTensor, ...]
    turns: bool = False

    @property
    def dtype(self) -> str:
        """Float32."""
        return "F32"

    @property
    def path(self) -> Path:
        """The file of the first."""
        return self.matrices[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """As many as there are, and what each is."""
        one = self.matrices[0].shape
        return (len(self.matrices), *(one[::-1] if self.turns else one))

    def read(self) -> npt.NDArray[np.float32]:
        """Return all values."""
        return self.read_rows(0, len(self.matrices))

    def read_rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return those of the matrices `start` to `stop`."""
        found = [each.read() for each in self.matrices[start:stop]]
        return np.stack([np.ascontiguousarray(each.T) for each in found] if self.turns else found)


def derived_values(sources: Iterable[LazyTensor]) -> dict[str, Any]:
    """Return torch tensors of those of `sources` that are not read as they are stored, by name."""
    import torch  # heavy: only loading needs it

    return {each.name: torch.from_numpy(each.read()) for each in sources if not isinstance(each, StoredTensor)}
