"""How the exported base differs from the checkpoint, without computing anything else: what adapters must follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy.typing as npt

from lora_core_qnn_sim.graph.rotation import rotated_a, rotated_b
from lora_core_qnn_sim.graph.splitting import Splits, split_a, split_b

Array = npt.NDArray[Any]


@attrs.frozen(kw_only=True, eq=False)
class Basis:
    """The change of basis of a base: `gains` folded by a rotation (None: not rotated) and `splits` of MLP channels."""

    gains: Mapping[str, Array] | None = None
    splits: Splits = attrs.field(factory=dict)

    def a(self, layer: str, a: Array) -> Array:
        """Return an A matrix of `layer` as the exported base needs it."""
        turned = a if self.gains is None else rotated_a(layer, a, self.gains)
        return split_a(layer, turned, self.splits)

    def b(self, layer: str, b: Array) -> Array:
        """Return a B matrix of `layer` as the exported base needs it."""
        turned = b if self.gains is None else rotated_b(layer, b)
        return split_b(layer, turned, self.splits)

    def features(self, layer: str, inputs: int, outputs: int) -> tuple[int, int]:
        """Return the numbers of inputs and outputs that a layer of the checkpoint has in the exported base."""
        block, _, projection = layer.rpartition(".")
        if block in self.splits and projection == "down_proj":
            inputs = len(self.splits[block])
        if block in self.splits and projection in ("gate_proj", "up_proj"):
            outputs = len(self.splits[block])
        if block in self.splits and projection == "gate_up_proj":
            outputs = 2 * len(self.splits[block])
        return inputs, outputs
