"""Slot kinds: what can hang on a layer of the base, as data and four operations.

A kind names its parts, says how an update is folded into them, how several updates become one, and how the parts act
on a module. Everything else (plans, relocations, templates, manifests, verification) speaks of parts by name. Another
kind is another class here and a line in `KINDS`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import numpy as np

from lora_core.adapters.adapter import LOW_RANK, Adapter, Update
from lora_core.errors import AdapterError
from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    import numpy.typing as npt

FLOAT32_SIZE = 4
_ROUNDING = 1e-6
Values = Mapping[str, "npt.NDArray[np.float32]"]
"""The arrays of one slot by part: float32, C-contiguous, of the parts' shapes."""


@attrs.frozen(kw_only=True)
class Part:
    """One tensor of a slot: its name within the kind, its shape, and the value that makes it do nothing."""

    name: str
    shape: tuple[int, ...]
    neutral: Literal["zero", "one"] = "zero"

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

    `feature` is what users call it. `needs_base` says that folding needs the base's own weights, so that linking
    without them is impossible.
    """

    name: str
    feature: str = ""
    needs_base: bool = False

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
class _Stacked:
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
        parts = [scaled(tensor, factor) for tensor, factor in zip(self.tensors, self.factors, strict=True)]
        return np.ascontiguousarray(np.concatenate(parts, axis=self.axis))


class LowRank(SlotKind):
    """LoRA: `out = base(x) + x @ A.T @ B.T`, with `a` of shape (rank, in_features) and `b` (out_features, rank)."""

    name = LOW_RANK
    feature = "LoRA"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return A and B."""
        return (
            Part(name="a", shape=(extent.rank, extent.in_features)),
            Part(name="b", shape=(extent.out_features, extent.rank)),
        )

    def extent(self, update: Update) -> Extent:
        """Return the rank (rows of A) and the features of both matrices."""
        (rank, in_features), (out_features, _) = update.tensors["a"].shape, update.tensors["b"].shape
        return Extent(in_features=in_features, out_features=out_features, rank=rank)

    def fold(self, update: Update | None, extent: Extent) -> Values:
        """Return A and B zero-padded to the slot's rank, which is exact; B carries the scaling."""
        a = np.zeros((extent.rank, extent.in_features), dtype=np.float32)
        b = np.zeros((extent.out_features, extent.rank), dtype=np.float32)
        if update is not None:
            rank = self.extent(update).rank
            a[:rank] = update.tensors["a"].read()
            b[:, :rank] = scaled(update.tensors["b"], update.scaling)
        return {"a": a, "b": b}

    def combine(self, updates: Sequence[Update]) -> Update:
        """Return the concatenation of all ranks (PEFT's `add_weighted_adapter`, type `cat`), scalings folded into B."""
        matrices_a, matrices_b = (tuple(update.tensors[part] for update in updates) for part in ("a", "b"))
        ones = (1.0,) * len(updates)
        scalings = tuple(update.scaling for update in updates)
        return Update(
            module=updates[0].module,
            kind=self.name,
            tensors={
                "a": _Stacked(tensors=matrices_a, factors=ones, axis=0),
                "b": _Stacked(tensors=matrices_b, factors=scalings, axis=1),
            },
            scaling=1.0,
        )

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `LoraLinear` around `module`."""
        from lora_core.adapters.slots.modules import LoraLinear  # heavy: torch

        return LoraLinear(module, values["a"], values["b"])


class _Alone(SlotKind):
    """A kind of one part that does not add up: what it does is not in proportion to a strength."""

    part: str

    def fold(self, update: Update | None, extent: Extent) -> Values:
        """Return the part as it is: as in PEFT, a strength counts for A and B alone."""
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


class Gain(_Alone):
    """`out = base(x) * gain`, a factor for each output: what DoRA does to the base's own part."""

    name = "gain"
    part = "gain"
    feature = "DoRA"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the gain, as the weight of a linear layer from one input."""
        return (Part(name=self.part, shape=(extent.out_features, 1), neutral="one"),)

    def extent(self, update: Update) -> Extent:
        """Return the number of outputs."""
        return Extent(in_features=0, out_features=update.tensors[self.part].shape[0], rank=1)

    def does_nothing(self, values: Values) -> bool:
        """Say whether every factor is 1, but for the rounding of the norm that it is a quotient by."""
        return bool((np.abs(values[self.part] - 1) <= _ROUNDING).all())

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `GainedLinear` around `module`."""
        from lora_core.adapters.slots.modules import GainedLinear  # heavy: torch

        return GainedLinear(module, values[self.part])


class Shift(_Alone):
    """`out = base(x) + shift`, a constant for each output: a trained bias, as what it adds to the base's."""

    name = "shift"
    part = "shift"
    feature = "trained biases"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the shift, as the weight of a linear layer from one input."""
        return (Part(name=self.part, shape=(extent.out_features, 1)),)

    def extent(self, update: Update) -> Extent:
        """Return the number of outputs."""
        return Extent(in_features=0, out_features=update.tensors[self.part].shape[0], rank=1)

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `ShiftedLinear` around `module`."""
        from lora_core.adapters.slots.modules import ShiftedLinear  # heavy: torch

        return ShiftedLinear(module, values[self.part])


class Dense(_Alone):
    """`out = base(x) + x @ delta.T`: a whole trained weight, as what it adds to the base's."""

    name = "dense"
    part = "delta"
    feature = "whole trained linear layers"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the difference of the weights."""
        return (Part(name=self.part, shape=(extent.out_features, extent.in_features)),)

    def extent(self, update: Update) -> Extent:
        """Return the features of the weight."""
        out_features, in_features = update.tensors[self.part].shape
        return Extent(in_features=in_features, out_features=out_features, rank=1)

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `WidenedLinear` around `module`."""
        from lora_core.adapters.slots.modules import WidenedLinear  # heavy: torch

        return WidenedLinear(module, values[self.part])


KINDS: Mapping[str, SlotKind] = {kind.name: kind for kind in (LowRank(), Gain(), Shift(), Dense())}
"""Every kind by name. Those on one layer act in the order of their names: a gain before what is added to it."""


def kind_of(name: str) -> SlotKind:
    """Return the kind called `name`; raises `KeyError` if this lora-core does not know it."""
    return KINDS[name]


def extent_of(update: Update) -> Extent:
    """Return the slot that `update` needs."""
    return kind_of(update.kind).extent(update)


def max_rank(adapter: Adapter) -> int:
    """Return the largest rank of any update."""
    return max(extent_of(update).rank for update in adapter.updates)


def scaled(tensor: LazyTensor, factor: float) -> npt.NDArray[np.float32]:
    """Return `tensor * factor`: the factor is computed in double precision and rounded once to float32, each product is
    one float32 multiplication. Everything that folds does it here, so that a link writes what an export wrote.

    Raises `AdapterError` if a product overflows.
    """
    if factor == 1.0:
        return tensor.read()
    try:
        with np.errstate(over="raise"):
            return tensor.read() * np.float32(factor)
    except FloatingPointError as error:
        raise AdapterError(
            f"B times its scaling {factor} is more than float32 holds.",
            where=f"{tensor.path}: {tensor.name}",
            remedy="Check lora_alpha and the strength.",
        ) from error
