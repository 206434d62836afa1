"""Linear layers of a base rounded for the inputs that they have, layer by layer, and kept in files until stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.errors import ModelError, Problem
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.layers import ModelSummary
from lora_core.models.architecture import Architecture
from lora_core.models.base import ModelHandle
from lora_core.models.decoders import read_decoder
from lora_core.preparation.compensation import compensated, inverse_factor
from lora_core.preparation.decoder import CalibratedDecoder, Tokens
from lora_core.quant.fitting import Float32, Grid, Int8, dequantized, fitted_by_importance, weighted_scales

Array = npt.NDArray[Any]
STAGE = "Round for the inputs of layers"
DAMPING = 0.3
"""Of moments. A thousand tokens tell what inputs do together less surely than how large each is: with 0.01, which is
usual for a hundred times as many, SmolLM2 in groups of 64 lost 40 % more on other texts (`benchmarks/four_bits.py`)."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@attrs.frozen(kw_only=True)
class RoundedLayers:
    """Integers (rows, inputs) and scales (rows, groups) of linear layers, by name, in files of `directory`."""

    directory: Path
    names: tuple[str, ...]

    def rows(self, name: str, start: int, stop: int | None = None) -> tuple[Int8, Float32]:
        """Return copies of the integers and scales of some rows of a layer, reading no others."""
        return self._part(name, "integers", start, stop), self._part(name, "scales", start, stop)

    def weight(self, name: str) -> Float32:
        """Return a layer's weight as it will be stored, (rows, inputs)."""
        integers, scales = self.rows(name, 0)
        return dequantized(integers, scales)

    def put(self, name: str, integers: Int8, scales: Float32) -> None:
        """Keep a layer."""
        np.save(self._file(name, "integers"), integers)
        np.save(self._file(name, "scales"), scales)

    def _part(self, name: str, part: str, start: int, stop: int | None) -> Any:
        return np.array(np.load(self._file(name, part), mmap_mode="r")[start:stop])

    def _file(self, name: str, part: str) -> Path:
        return self.directory / f"{self.names.index(name)}.{part}.npy"


def decoder_of(
    summary: ModelSummary, remedy: str = "Leave --rounding out."
) -> tuple[Architecture | None, list[Problem]]:
    """Return the decoder that is calibrated for a base, or None and what stands against it, with the `remedy`."""
    if summary.family not in FAMILIES:
        what = f"Bases of family {summary.family!r} cannot be calibrated: {', '.join(FAMILIES)} can"
        return None, [Problem(what=what, remedy=remedy)]
    return read_decoder(summary, STAGE)


def round_layers(
    model: ModelHandle,
    grids: Mapping[str, Grid],
    prompts: Sequence[Tokens],
    directory: Path,
    emit: Emit,
    *,
    compensate: bool = True,
) -> RoundedLayers:
    """Round the linear layers that `grids` names, each for the inputs that it has on `prompts` after all that comes
    before it has been rounded, and keep them in the empty `directory`.

    Scales count every weight by the squares of its inputs. With `compensate`, what rounding one weight costs is made
    up for in others; without, integers are the nearest. A layer's weights are read when they are rounded, and let go
    of. Raises `ModelError` for a base that has no `decoder_of`.
    """
    architecture, problems = decoder_of(model.summary)
    if architecture is None:
        raise ModelError(problems)
    with stage(emit, STAGE):
        kept = RoundedLayers(directory=directory, names=tuple(grids))
        rounding = _Rounding(grids=grids, kept=kept, compensate=compensate, emit=emit)
        CalibratedDecoder.over(architecture, model.tensors(), prompts, rounding).run(prompts)
    return kept


@attrs.define(kw_only=True, eq=False)
class _Rounding:
    """Visits the linear layers of a decoder in their order, and lets it go on with what they have become."""

    grids: Mapping[str, Grid]
    kept: RoundedLayers
    compensate: bool
    emit: Emit
    _inputs: Array = attrs.field(factory=lambda: np.empty(0), init=False)
    _factor: Array = attrs.field(factory=lambda: np.empty(0), init=False)
    _importance: Array = attrs.field(factory=lambda: np.empty(0), init=False)
    _done: int = attrs.field(default=0, init=False)

    def __call__(self, name: str, inputs: Array, weight: Array) -> Array:
        """Round a layer for its inputs; return its weight as it will be stored."""
        if name not in self.grids:
            return weight
        if inputs is not self._inputs:
            self._look_at(inputs)
        grid = self.grids[name]
        if self.compensate:
            integers, scales = round_weight(weight, self._factor, self._importance, grid)
        else:
            integers, scales = fitted_by_importance(weight.astype(np.float32), self._importance, grid)
        self.kept.put(name, integers, scales)
        self._done += 1
        self.emit(StageAdvanced(stage=STAGE, done=self._done, total=len(self.grids)))
        groups = integers.reshape(len(scales), -1, grid.group) * scales.astype(np.float64)[..., None]
        return np.asarray(groups.reshape(weight.shape))

    def _look_at(self, inputs: Array) -> None:
        self._inputs = inputs
        if self.compensate:
            moment = inputs.T @ inputs
            self._factor, self._importance = inverse_factor(moment, DAMPING), np.diag(moment)
        else:
            self._importance = np.square(inputs).sum(axis=0)


def round_weight(weight: Array, factor: Array, importance: Array, grid: Grid) -> tuple[Int8, Float32]:
    """Return integers and scales of one weight (rows, inputs).

    Scales are those with the least error of each group as it has become, each input counted by its `importance`, the
    sum of its squares: in a long group the scale with the least error of the weights cuts off those that matter most.
    """

    def scales(start: int, columns: Array) -> Array:
        counted = importance[start : start + len(columns)]
        return weighted_scales(np.ascontiguousarray(columns.T, np.float32), counted, grid).astype(np.float64)

    integers, given = compensated(weight, factor, scales, group=grid.group, lowest=grid.lowest, highest=grid.highest)
    return integers, given.astype(np.float32)
