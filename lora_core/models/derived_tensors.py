"""Stored tensors that a model reads otherwise than they are stored."""

from __future__ import annotations

from collections.abc import Iterable
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


def derived_values(sources: Iterable[LazyTensor]) -> dict[str, Any]:
    """Return torch tensors of those of `sources` that are not read as they are stored, by name."""
    import torch  # heavy: only loading needs it

    return {each.name: torch.from_numpy(each.read()) for each in sources if not isinstance(each, StoredTensor)}
