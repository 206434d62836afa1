"""What can hang on a linear layer: LoRA, DoRA's gain, a trained bias, a whole trained weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lora_core.adapters.adapter import LOW_RANK, Update
from lora_core.adapters.slots.kind import Alone, Extent, Part, SlotKind, Values, concatenated, scaled

_ROUNDING = 1e-6


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
        import numpy as np

        a = np.zeros((extent.rank, extent.in_features), dtype=np.float32)
        b = np.zeros((extent.out_features, extent.rank), dtype=np.float32)
        if update is not None:
            rank = self.extent(update).rank
            a[:rank] = update.tensors["a"].read()
            b[:, :rank] = scaled(update.tensors["b"], update.scaling)
        return {"a": a, "b": b}

    def combine(self, updates: Sequence[Update]) -> Update:
        """Return the concatenation of all ranks, scalings folded into B."""
        return concatenated(updates, "a", axis=0)

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `LoraLinear` around `module`."""
        from lora_core.adapters.slots.modules import LoraLinear  # heavy: torch

        return LoraLinear(module, values["a"], values["b"])


class _OfOutputs(Alone):
    """One number for each output of a linear layer."""

    neutral: Literal["zero", "one"] = "zero"

    def parts(self, extent: Extent) -> tuple[Part, ...]:
        """Return the numbers, as the weight of a linear layer from one input."""
        return (Part(name=self.part, shape=(extent.out_features, 1), neutral=self.neutral),)

    def extent(self, update: Update) -> Extent:
        """Return the number of outputs."""
        return Extent(in_features=0, out_features=update.tensors[self.part].shape[0], rank=1)


class Gain(_OfOutputs):
    """`out = base(x) * gain`, a factor for each output: what DoRA does to the base's own part."""

    name = "gain"
    part = "gain"
    feature = "DoRA"
    neutral = "one"

    def does_nothing(self, values: Values) -> bool:
        """Say whether every factor is 1, but for the rounding of the norm that it is a quotient by."""
        import numpy as np

        return bool((np.abs(values[self.part] - 1) <= _ROUNDING).all())

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `GainedLinear` around `module`."""
        from lora_core.adapters.slots.modules import GainedLinear  # heavy: torch

        return GainedLinear(module, values[self.part])


class Shift(_OfOutputs):
    """`out = base(x) + shift`, a constant for each output: a trained bias, as what it adds to the base's."""

    name = "shift"
    part = "shift"
    feature = "trained biases"

    def wrap(self, module: Any, values: Mapping[str, Any]) -> Any:
        """Return a `ShiftedLinear` around `module`."""
        from lora_core.adapters.slots.modules import ShiftedLinear  # heavy: torch

        return ShiftedLinear(module, values[self.part])


class Dense(Alone):
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
