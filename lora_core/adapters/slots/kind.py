"""What a slot kind is: parts by name, how an update is folded into them, how several become one, how they act.

Everything else (plans, relocations, templates, manifests, verification) speaks of parts by name. Another kind is
another class and a line in `kinds.KINDS`. numpy is imported where values are computed: plans are read and adapters
removed without it, in half the time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs

from lora_core.adapters.adapter import Update
from lora_core.errors import AdapterError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from lora_core.tensors import LazyTensor

FLOAT32_SIZE = 4
Values = Mapping[str, "npt.NDArray[np.float32]"]
"""The arrays of one slot by part: float32, C-contiguous, of the parts' shapes."""


@attrs.frozen(kw_only=True)
class Part:
    """One tensor of a slot: its name within the kind, its shape, and the value that makes it do nothing.

    A `table` is read by rows, as an embedding is; every other part is the weight of a linear layer.
    """

    name: str
    shape: tuple[int, ...]
    neutral: Literal["zero", "one"] = "zero"
    table: bool = False

    @property
    def size(self) -> int:
        """Bytes in float32."""
        return FLOAT32_SIZE * math.prod(self.shape)


@attrs.frozen(kw_only=True)
class Extent:
    """How large a slot an update needs: the layer it was trained for, and its rank (1 for a kind without ranks).

    `in_features` is 0 for an update that acts on outputs alone and so fits a layer of any input.
    """

    in_features: int
    out_features: int
    rank: int


class SlotKind(ABC):
    """What can hang on a layer. Kinds have no state; `name` is what manifests and relocation tables store.

    `feature` is what users call it, `layer` the kind of layer that it hangs on. `needs_base` says that folding needs
    the base's own weights, so that linking without them is impossible. `unties` says that it changes a layer and not
    others with the same weight, so that merging it into a base where they are tied gives another model.
    """

    name: str
    feature: str = ""
    layer: Literal["linear", "embedding"] = "linear"
    needs_base: bool = False
    unties: bool = False

    @abstractmethod
    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the tensors of a slot of `extent`, in the order in which they are told."""

    @abstractmethod
    def extent(self, update: Update) -> Extent:
        """Return the slot that `update` needs, from its tensors' shapes."""

    @abstractmethod
    def fold(self, update: Update | None, extent: Extent) -> Values:
        """Return the parts of a slot of `extent` that carry `update` (None: that do nothing), fresh arrays.

        `extent` may have a larger rank than the update: what is beyond it is neutral. Scaling is folded in, so that a
        program does not depend on it. Raises `AdapterError` for values that float32 cannot hold.
        """

    @abstractmethod
    def combine(self, updates: Sequence[Update]) -> Update:
        """Return one update of the same module whose effect is the sum of the effects of `updates`."""

    def does_nothing(self, values: Values) -> bool:
        """Say whether a slot with the parts `values` leaves its layer as it is; by default, if any part is all zero."""
        return any(not value.any() for value in values.values())

    @abstractmethod
    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `torch.nn.Module` that is `module` with the parts `values` (tensors) acting on it.

        The result is a `lora_core.models.injection.SlotModule`.
        """


@attrs.frozen(kw_only=True)
class Stacked:
    """Tensors joined along `axis`, as a lazy tensor; `factors` are multiplied in, one each."""

    tensors: tuple[LazyTensor, ...]
    factors: tuple[float, ...]
    axis: int
    dtype: str = "F32"

    @property
    def name(self) -> str:
        """The keys of the parts."""
        return " + ".join(tensor.name for tensor in self.tensors)

    @property
    def path(self) -> Path:
        """The file of the first part."""
        return self.tensors[0].path

    @property
    def shape(self) -> tuple[int, ...]:
        """The first part's shape, with the sizes along the axis added up."""
        shape = list(self.tensors[0].shape)
        shape[self.axis] = sum(tensor.shape[self.axis] for tensor in self.tensors)
        return tuple(shape)

    def read(self) -> npt.NDArray[np.float32]:
        """Return the parts joined, C-contiguous."""
        import numpy as np

        parts = [scaled(tensor, factor) for tensor, factor in zip(self.tensors, self.factors, strict=True)]
        return np.ascontiguousarray(np.concatenate(parts, axis=self.axis))


class Alone(SlotKind):
    """A kind of one part that does not add up: what it does is not in proportion to a strength."""

    part: str

    def fold(self, update: Update | None, extent: Extent) -> Values:
        """Return the part as it is: as in PEFT, a strength counts for A and B alone."""
        import numpy as np

        (part,) = self.parts(extent)
        if update is None:
            filled = np.zeros if part.neutral == "zero" else np.ones
            return {part.name: filled(part.shape, dtype=np.float32)}
        return {part.name: np.ascontiguousarray(update.tensors[part.name].read())}

    def combine(self, updates: Sequence[Update]) -> Update:
        """Refuse: raises `AdapterError`."""
        tensor = updates[0].tensors[self.part]
        raise AdapterError(
            f"An adapter with {self.feature} cannot be part of a composite: its effect does not add up with others.",
            where=f"{tensor.path}: {updates[0].module}",
            remedy="Give it as an adapter of its own.",
        )


def concatenated(updates: Sequence[Update], first: str, axis: int) -> Update:
    """Return low-rank updates of one module as one of all their ranks (PEFT's `add_weighted_adapter`, type `cat`): `b`
    along its columns with the scalings folded into it, the part `first`, which meets it, along `axis`.
    """
    ones = (1.0,) * len(updates)
    scalings = tuple(update.scaling for update in updates)
    matrices, others = (tuple(update.tensors[part] for update in updates) for part in ("b", first))
    return Update(
        module=updates[0].module,
        kind=updates[0].kind,
        tensors={
            first: Stacked(tensors=others, factors=ones, axis=axis),
            "b": Stacked(tensors=matrices, factors=scalings, axis=1),
        },
        scaling=1.0,
    )


def scaled(tensor: LazyTensor, factor: float) -> npt.NDArray[np.float32]:
    """Return `tensor * factor`: the factor is computed in double precision and rounded once to float32, each product is
    one float32 multiplication. Everything that folds does it here, so that a link writes what an export wrote.

    Raises `AdapterError` if a product overflows.
    """
    if factor == 1.0:
        return tensor.read()
    import numpy as np

    try:
        with np.errstate(over="raise"):
            return tensor.read() * np.float32(factor)
    except FloatingPointError as error:
        raise AdapterError(
            f"B times its scaling {factor} is more than float32 holds.",
            where=f"{tensor.path}: {tensor.name}",
            remedy="Check lora_alpha and the strength.",
        ) from error
