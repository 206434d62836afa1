"""A stored tensor the other way round."""

import attrs
import numpy as np

from lora_core.tensors import StoredTensor


@attrs.frozen
class Transposed:
    """A matrix of a file (a `LazyTensor`) with its axes exchanged when it is read."""

    stored: StoredTensor

    @property
    def name(self):
        return self.stored.name

    @property
    def dtype(self):
        return self.stored.dtype

    @property
    def path(self):
        return self.stored.path

    @property
    def shape(self):
        return self.stored.shape[::-1]

    def read(self):
        return np.ascontiguousarray(self.stored.read().T)
