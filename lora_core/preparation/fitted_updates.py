"""A and B of an adapter chosen anew for a rounded base, so that they make up for what rounding lost.

Where a layer of weight `W` is stored as `Q`, its inputs in the rounded base (with what was fitted before it) are `X`.
B'A' is then the matrix of the slot's rank whose outputs `X (B'A')^T` are nearest to those of `W + s B A - Q`: the
projection of that matrix on the first principal directions of its outputs. No step is iterated and nothing is trained.
All of it is in float64, without torch, one layer's weights in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.adapters.adapter import LOW_RANK, Adapter, Update
from lora_core.adapters.slots.recovery import HeldTensor
from lora_core.errors import ModelError, UnsupportedError
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.layers import LayerInfo
from lora_core.models.base import ModelHandle
from lora_core.preparation.decoder import CalibratedDecoder, Tokens
from lora_core.preparation.rounded import decoder_of
from lora_core.quant.fitting import Float32

Array = npt.NDArray[Any]
_RoundWeight = Callable[[LayerInfo, Float32], Float32]
"""Given a layer and its weight (out_features, in_features): the weight as it is stored."""

STAGE = "Fit the adapter"
_NO_DECODER = "Adapters of this base cannot be fitted: link them as they are."
_SMALLEST = 1e-12
"""Of the largest variance: directions with less are none."""


@attrs.frozen(kw_only=True)
class FittedUpdates:
    """The updates of an adapter, those of rounded layers fitted.

    `before` and `after` are the mean square errors of these layers' outputs on the prompts, with the adapter as it was
    and with the fitted one, relative to the mean square of the outputs in full precision, averaged over the layers.
    """

    updates: tuple[Update, ...]
    before: float
    after: float


def fitted_updates(
    model: ModelHandle,
    adapter: Adapter,
    rounded: Mapping[str, LayerInfo],
    round_weight: _RoundWeight,
    prompts: Sequence[Tokens],
    *,
    rank: int | None,
    emit: Emit,
) -> FittedUpdates:
    """Fit the LoRA of `adapter` on the linear layers that are `rounded` (by name), each at its own rank or at `rank`.

    What the adapter does to other layers is kept. Raises `ModelError` for a base that has no `decoder_of`,
    `UnsupportedError` for an adapter of which nothing is to be fitted.
    """
    architecture, problems = decoder_of(model.summary, _NO_DECODER)
    if architecture is None:
        raise ModelError(problems)
    slots = {each.module: each for each in adapter.updates if each.kind == LOW_RANK}
    visited = {layer.name for layer in model.summary.layers if layer.kind == "linear" and not layer.is_output}
    if not slots.keys() & rounded.keys() & visited:
        raise UnsupportedError(
            f"Adapter {adapter.name!r} is on no layer that is stored rounded, so there is nothing to make up for",
            where=adapter.source,
            remedy="Link it as it is.",
        )
    fitting = _Fitting(
        layers={name: layer for name, layer in rounded.items() if name in visited},
        round_weight=round_weight,
        slots=slots,
        rank=rank,
        emit=emit,
    )
    with stage(emit, STAGE):
        CalibratedDecoder.over(architecture, model.tensors(), prompts, fitting).run(prompts)
    before, after = np.mean(fitting.errors, axis=0)
    updates = tuple(
        fitting.fitted.get(each.module, each) if each.kind == LOW_RANK else each for each in adapter.updates
    )
    return FittedUpdates(updates=updates, before=float(before), after=float(after))


@attrs.define(kw_only=True)
class _Fitting:
    """Visits the linear layers of a decoder in their order, which goes on with rounded weights and fitted A and B."""

    layers: Mapping[str, LayerInfo]
    round_weight: _RoundWeight
    slots: Mapping[str, Update]
    rank: int | None
    emit: Emit
    fitted: dict[str, Update] = attrs.field(factory=dict)
    errors: list[tuple[float, float]] = attrs.field(factory=list)
    _inputs: Array = attrs.field(factory=lambda: np.empty(0), init=False)
    _condensed: Array = attrs.field(factory=lambda: np.empty(0), init=False)

    def __call__(self, name: str, inputs: Array, weight: Array) -> Array:
        """Fit the slot of a layer, if it has one, for its inputs; return the weight to go on with."""
        layer, update = self.layers.get(name), self.slots.get(name)
        stored = weight if layer is None else self.round_weight(layer, weight.astype(np.float32)).astype(np.float64)
        if update is None:
            return stored
        a, b = update.tensors["a"].read(), update.tensors["b"].read()
        own = (update.scaling * b.astype(np.float64)) @ a
        if layer is None:
            return stored + own
        if inputs is not self._inputs:
            self._inputs, self._condensed = inputs, condensed(inputs)
        a, b, left = nearest(weight + own - stored, self._condensed, self.rank or len(a))
        self.errors.append(_errors(self._condensed, weight + own, weight - stored, left))
        self.fitted[name] = _held(name, a, b)
        self.emit(StageAdvanced(stage=STAGE, done=len(self.fitted), total=len(self.slots.keys() & self.layers.keys())))
        return stored + b.astype(np.float64) @ a


def condensed(inputs: Array) -> Array:
    """Return inputs, no more than they have features, whose outputs have the squares and directions of those of
    `inputs` (tokens, in) under every matrix: the triangular factor, `X^T X = R^T R`.
    """
    return inputs if len(inputs) <= inputs.shape[1] else np.asarray(np.linalg.qr(inputs, mode="r"))


def nearest(delta: Array, inputs: Array, rank: int) -> tuple[Float32, Float32, float]:
    """Return A (rank, in) and B (out, rank) whose product's outputs for `inputs` (tokens, in) are nearest to those of
    `delta` (out, in), and the sum of squares that is left.

    `condensed` inputs give the same. The columns of B are orthonormal. The rank is less where the outputs have fewer
    directions.
    """
    outputs = inputs @ delta.T
    tall = outputs.shape[0] > outputs.shape[1]
    variances, vectors = np.linalg.eigh(outputs.T @ outputs if tall else outputs @ outputs.T)
    kept = np.arange(len(variances))[::-1][:rank]
    kept = kept[variances[kept] > _SMALLEST * max(variances[-1], _SMALLEST)]
    if not len(kept):
        return np.zeros((1, delta.shape[1]), np.float32), np.zeros((len(delta), 1), np.float32), 0.0
    directions = vectors[:, kept] if tall else outputs.T @ vectors[:, kept] / np.sqrt(variances[kept])
    left = max(0.0, float(np.square(outputs).sum() - variances[kept].sum()))
    return (directions.T @ delta).astype(np.float32), directions.astype(np.float32), left


def _errors(inputs: Array, full: Array, lost: Array, left: float) -> tuple[float, float]:
    """Return the squares of what is lost and of what is left of it, as parts of those of the full outputs."""
    whole = float(np.square(inputs @ full.T).sum()) or 1.0
    return float(np.square(inputs @ lost.T).sum()) / whole, left / whole


def _held(module: str, a: Float32, b: Float32) -> Update:
    tensors = {
        part: HeldTensor(name=f"{module} {part}", values=each, dtype="F32") for part, each in (("a", a), ("b", b))
    }
    return Update(module=module, tensors=tensors, scaling=1.0)
