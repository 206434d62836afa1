"""Static tensors of the base as the executors want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.encodings.grid import ChannelWeight


@attrs.define(kw_only=True, eq=False)
class BaseWeights:
    """The quantized base: channel weights, float vectors (norm gains, biases) and RoPE tables.

    `cos` and `sin` have shape (context, half of the rotated values of a head), those of `LlamaDims.local` layers beside
    them. Float64 copies of the integer matrices are made on first use and
    kept: 8 bytes an element is what exact sums cost here.
    """

    linears: Mapping[str, ChannelWeight]
    vectors: Mapping[str, npt.NDArray[np.float32]]
    cos: npt.NDArray[np.float32]
    sin: npt.NDArray[np.float32]
    _matrices: dict[str, npt.NDArray[np.float64]] = attrs.field(factory=dict, init=False)

    def matrix(self, name: str) -> npt.NDArray[np.float64]:
        """Return the integers of a channel weight as float64."""
        if name not in self._matrices:
            self._matrices[name] = self.linears[name].values.astype(np.float64)
        return self._matrices[name]

    def vector(self, name: str) -> npt.NDArray[np.float64]:
        """Return a float vector as float64."""
        return self.vectors[name].astype(np.float64)

    def real(self, name: str) -> npt.NDArray[Any]:
        """Return a weight or vector as float32."""
        return self.linears[name].dequantized() if name in self.linears else self.vectors[name]

    def forget(self) -> None:
        """Release the float64 copies."""
        self._matrices.clear()
