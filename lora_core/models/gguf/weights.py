"""Tensors of a GGUF model as those of the checkpoint that it was converted from, de-quantized when they are read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import numpy as np

from lora_core.adapters.gguf.container import GgufTensor, GgufType

if TYPE_CHECKING:
    import numpy.typing as npt


def readable_types() -> Mapping[int, GgufType]:
    """Return the types of tensors that the `gguf` package de-quantizes, by their numbers in `ggml_type`."""
    import gguf
    from gguf.quants import _type_traits as known

    plain = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    sizes = {kind: gguf.GGML_QUANT_SIZES[kind] for kind in (*plain, *known)}
    return {int(kind): GgufType(kind.name, values, size) for kind, (values, size) in sorted(sizes.items())}


@attrs.frozen(kw_only=True)
class GgufWeight:
    """A tensor called `name`, of `shape`, made of the `stored` one (a `LazyTensor`, and `Sliceable`).

    The rows of queries and keys are those of `heads` heads, whose two halves llama.cpp interleaves for its rotation
    (`LlamaModel.permute` of convert_hf_to_gguf.py); 0 where they are stored in the checkpoint's order.
    """

    name: str
    shape: tuple[int, ...]
    stored: GgufTensor
    heads: int = 0
    dtype: str = "F32"

    @property
    def path(self) -> Path:
        """The file that holds it."""
        return self.stored.path

    def read(self) -> npt.NDArray[np.float32]:
        """Return its values, as the `gguf` package de-quantizes them."""
        return self.read_rows(0, self.shape[0])

    def read_rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return the rows `start` to `stop`, reading no others but those of the same heads."""
        if not self.heads:
            return self._stored_rows(start, stop)
        width = self.shape[0] // self.heads
        first, last = start // width * width, -(-stop // width) * width
        rows = self._stored_rows(first, last)
        turned = rows.reshape(-1, width // 2, 2, *self.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        return np.ascontiguousarray(turned[start - first : stop - first])

    def _stored_rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        import gguf

        kind = self.stored.kind
        each = math.prod(self.shape[1:]) // kind.values * kind.bytes
        raw = self.stored.read_bytes(start * each, stop * each).reshape(stop - start, each)
        with np.errstate(all="ignore"):  # values that are not finite are the weight's own
            values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
        # A copy: what is stored as float32 is a view of bytes that may not be written to.
        return np.array(values, np.float32).reshape(stop - start, *self.shape[1:])
