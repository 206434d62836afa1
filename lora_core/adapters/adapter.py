"""An adapter as data: A/B tensor pairs per target module, read lazily."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class LazyTensor(Protocol):
    """A stored tensor whose header is known and whose data is read on demand.

    `name` is the tensor's key in its file, `dtype` the safetensors type name (`F32`, `F16`, `BF16`).
    """

    @property
    def name(self) -> str:
        """The tensor's key in its file."""
        ...

    @property
    def dtype(self) -> str:
        """The type it is stored in."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        ...

    @property
    def path(self) -> Path:
        """The file that holds it."""
        ...

    def read(self) -> npt.NDArray[np.float32]:
        """Return the data as a C-contiguous float32 array of `shape`."""
        ...


@attrs.frozen(kw_only=True)
class LoraPair:
    """The two matrices of one target module: `out = base(x) + scaling * x @ A.T @ B.T`.

    `module` is the target's name as the Hugging Face model spells it (`model.layers.0.self_attn.q_proj`).
    `a` has shape (rank, in_features), `b` (out_features, rank). `scaling` is already what PEFT computes:
    `alpha / r`, or `alpha / sqrt(r)` with rsLoRA, patterns applied, times the adapter's strength.
    """

    module: str
    a: LazyTensor
    b: LazyTensor
    scaling: float

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a.shape[0]

    @property
    def in_features(self) -> int:
        """The number of columns of A."""
        return self.a.shape[1]

    @property
    def out_features(self) -> int:
        """The number of rows of B."""
        return self.b.shape[0]


@attrs.frozen(kw_only=True)
class Adapter:
    """A named set of LoRA pairs.

    `pairs` are in natural order of their module names, each module once. `digest` is the SHA-256 hex of what was read
    (weights and configuration); `source` says where it came from, for messages only, and is never stored in a bundle.
    `base_model` is PEFT's `base_model_name_or_path`, if it was given.
    """

    name: str
    pairs: tuple[LoraPair, ...]
    digest: str
    source: str
    base_model: str | None = None

    @property
    def max_rank(self) -> int:
        """The largest rank of any pair."""
        return max(pair.rank for pair in self.pairs)

    def scaled(self, strength: float) -> Adapter:
        """Return this adapter with its effect times `strength`; the digest tells the strength, 1 changes nothing."""
        if strength == 1.0:
            return self
        return attrs.evolve(
            self,
            pairs=tuple(attrs.evolve(pair, scaling=pair.scaling * strength) for pair in self.pairs),
            digest=hashlib.sha256(f"{self.digest}@{strength!r}".encode()).hexdigest(),
        )
