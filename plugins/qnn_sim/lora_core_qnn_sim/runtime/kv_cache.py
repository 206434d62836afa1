"""The KV cache: explicit state of a dialog, on the grids it was filled with."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.graph.spec import GraphSpec


@attrs.define(kw_only=True, eq=False)
class QuantizedKvCache:
    """Keys and values of each layer, shape (context, kv_heads, head_dim), as unsigned grid integers.

    Of a layer that convolves, `keys` holds what it sums, (context, dim), and `values` nothing.

    `length` positions are filled. `owner` identifies the adapter, encodings and strengths that filled them; an empty
    cache has none. `io` counts bytes of the arrays.
    """

    keys: list[npt.NDArray[Any]]
    values: list[npt.NDArray[Any]]
    length: int = 0
    owner: str | None = None

    @classmethod
    def empty(cls, spec: GraphSpec) -> QuantizedKvCache:
        """Return a cache for `spec` with nothing in it."""
        dims = spec.dims
        attended = (spec.context_len, dims.n_kv_heads, dims.head_dim)
        convolves = [number in dims.convolving for number in range(dims.n_layers)]
        dtype = np.uint8 if spec.act_bits <= 8 else np.uint16
        return cls(
            keys=[np.zeros((spec.context_len, dims.dim) if each else attended, dtype) for each in convolves],
            values=[np.zeros((0,) if each else attended, dtype) for each in convolves],
        )

    def reset(self) -> None:
        """Forget everything; any adapter may fill it next."""
        self.length = 0
        self.owner = None
