"""How an export rounds the 4-bit linear layers of its base: each by itself, or for the inputs that they have."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.errors import InputError, Problem
from lora_core.events import Emit
from lora_core.layers import LayerInfo
from lora_core.models.base import ModelHandle
from lora_core.preparation.options import HowToRound
from lora_core.preparation.prompts import Tokens, prompts_for
from lora_core.preparation.rounded import RoundedLayers, decoder_of, round_layers
from lora_core.quant.fitting import Grid, Narrow
from lora_core.quant.policy import Assignment


@attrs.frozen(kw_only=True)
class Rounding:
    """What an export's options ask for. `narrow` rounds scales to the type in which the backend stores them."""

    kind: HowToRound
    calibration: str | None
    narrow: Narrow = attrs.field(eq=False)

    @property
    def calibrates(self) -> bool:
        """Whether layers are rounded for the inputs that they have on prompts, and not each by itself."""
        return self.kind != "nearest"

    def problems(self, model: ModelHandle, assignment: Assignment) -> list[Problem]:
        """Return what stands against it for a base whose layers are quantized as `assignment` says."""
        if not self.calibrates:
            if self.calibration is None:
                return []
            what = "--calibration is for --rounding importance and compensated, and weights are rounded to the nearest"
            return [Problem(what=what, remedy="Give --rounding compensated, or leave --calibration out.")]
        _, problems = decoder_of(model.summary)
        if problems:
            return problems
        if not self._grids(model.summary.layers, assignment):
            what = "The policy gives no linear layer 4 bits, so there is nothing to round by its inputs"
            return [Problem(what=what, remedy="Leave --rounding out, or choose another policy.")]
        try:
            self._prompts(model)
        except InputError as error:
            return list(error.problems)
        return []

    @contextlib.contextmanager
    def layers(
        self, model: ModelHandle, assignment: Assignment, work: Path, emit: Emit
    ) -> Iterator[RoundedLayers | None]:
        """Give the 4-bit linear layers, rounded for their inputs, for as long as the block lasts; None for `nearest`.

        They are kept in a directory of their own in `work`.
        """
        if not self.calibrates:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix=".rounded-", dir=work) as directory:
            yield self.into(model, assignment, Path(directory), emit)

    def into(self, model: ModelHandle, assignment: Assignment, directory: Path, emit: Emit) -> RoundedLayers | None:
        """Return what `layers` gives, kept in the empty `directory`, which is the caller's."""
        if not self.calibrates:
            return None
        grids = self._grids(model.summary.layers, assignment)
        compensate = self.kind == "compensated"
        return round_layers(model, grids, self._prompts(model), directory, emit, compensate=compensate)

    def _prompts(self, model: ModelHandle) -> Sequence[Tokens]:
        return prompts_for(model, self.calibration)

    def _grids(self, layers: Sequence[LayerInfo], assignment: Assignment) -> Mapping[str, Grid]:
        found = {}
        for layer in layers:
            scheme = assignment.schemes.get(layer.name)
            if layer.kind == "linear" and not layer.is_output and scheme is not None and scheme.bits == 4:
                group = scheme.group_size or layer.in_features
                found[layer.name] = Grid(lowest=-8, highest=7, group=group, narrow=self.narrow)
        return found
