"""The base's tensors as the graph needs them: read piece by piece, quantized, appended to the weights file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import ModelError
from lora_core.preparation.rounded import RoundedLayers
from lora_core.quant.fitting import dequantized
from lora_core.quant.policy import Scheme
from lora_core.tensors import LazyTensor, row_blocks
from lora_core_onnx.library import onnxruntime
from lora_core_onnx.storage.weights import WeightsFile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BLOCK_BYTES = 8 << 20
"""How much of a tensor is in memory at a time, as float32."""


@attrs.frozen(kw_only=True)
class Packed:
    """A matrix for `MatMulNBits`: the names of its values and scales, and how they are to be read."""

    values: str
    scales: str
    bits: int
    block_size: int


class StoredBase:
    """Writes each tensor when it is first asked for, under the name that the checkpoint gives it."""

    def __init__(
        self, tensors: Mapping[str, LazyTensor], file: WeightsFile, known: RoundedLayers | None = None
    ) -> None:
        self._tensors, self._file, self._known = tensors, file, known
        self._written: set[str] = set()
        self._packed: dict[tuple[str, int, int], Packed] = {}

    def plain(self, name: str) -> str:
        """Store a tensor in float32, row after row; return its name."""
        if name not in self._written:
            self._written.add(name)
            tensor = self._tensors[name]
            self._file.add(name, _dtype("FLOAT"), tensor.shape, row_blocks(tensor, BLOCK_BYTES))
        return name

    def half(self, name: str) -> str:
        """Store a tensor in float16; return its name there. Raises `ModelError` for values beyond its range."""
        stored = f"{name}.16bit"
        if stored not in self._written:
            self._written.add(stored)
            tensor = self._tensors[name]
            blocks = (_halved(name, block) for block in row_blocks(tensor, BLOCK_BYTES))
            self._file.add(stored, _dtype("FLOAT16"), tensor.shape, blocks)
        return stored

    def packed(self, name: str, stored: str, scheme: Scheme, *, by_rows: bool = False) -> Packed:
        """Store the matrix `stored` quantized by `scheme`, for the layer `name`: once for all layers that have it so.

        `by_rows` gives values as `GatherBlockQuantized` takes them, (out, bytes), the same bytes in another shape.
        """
        assert scheme.group_size is not None
        block, (rows, width) = scheme.group_size, self._tensors[stored].shape
        groups, size = width // block, block * scheme.bits // 8
        shape = (rows, groups * size) if by_rows else (rows, groups, size)
        values = f"{name}.weight.{scheme.bits}bit"
        if (before := self._packed.get((stored, scheme.bits, block))) is not None:
            self._file.again(values, shape, before.values)
            return attrs.evolve(before, values=values)
        scales: list[npt.NDArray[np.float32]] = []
        made = Packed(values=values, scales=f"{name}.weight.scales", bits=scheme.bits, block_size=block)
        self._file.add(made.values, _dtype("UINT8"), shape, self._quantized(name, stored, scheme, scales))
        self._file.add(made.scales, _dtype("FLOAT"), (rows, groups), scales)
        self._packed[stored, scheme.bits, block] = made
        return made

    def _quantized(
        self, name: str, stored: str, scheme: Scheme, scales: list[npt.NDArray[np.float32]]
    ) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the values of some rows after the others; their scales are put into `scales`."""
        tensor, block = self._tensors[stored], scheme.group_size or 0
        if self._known is not None and name in self._known.names:
            rows, width = tensor.shape
            step = max(1, BLOCK_BYTES // (4 * width))
            for start in range(0, rows, step):
                integers, scale = self._known.rows(name, start, start + step)
                scales.append(scale)
                yield nibbles(integers)
            return
        for part in row_blocks(tensor, BLOCK_BYTES):
            packed, scale = quantize(part, scheme.bits, block)
            scales.append(scale)
            yield packed

    def table(self, name: str, values: npt.NDArray[np.float32]) -> str:
        """Store a table that is computed; return its name."""
        self._file.add(name, _dtype("FLOAT"), values.shape, [values])
        return name


def quantize(
    rows: npt.NDArray[np.float32], bits: int, block_size: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Return the values of (out, in) `rows` as `MatMulNBits` takes them, symmetric, and a scale for each block."""
    import numpy as np

    # What `onnxruntime.quantization.MatMulNBitsQuantizer` calls for each weight of a model that it holds whole.
    onnxruntime()
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_matmul_8bits

    out, width = rows.shape
    groups = width // block_size
    packed = np.zeros((out, groups, block_size * bits // 8), np.uint8)
    scales = np.zeros((out, groups), np.float32)
    unused = np.zeros((out, -(-groups * bits // 8)), np.uint8)  # zero points, which symmetric values do not have
    columns = np.ascontiguousarray(rows.T)
    kernel: Any = quantize_matmul_4bits if bits == 4 else quantize_matmul_8bits
    kernel(packed, columns, scales, unused, block_size, out, width, True)
    return packed, scales


def nibbles(integers: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return integers from -8 to 7 (out, in) as `MatMulNBits` takes them, two a byte, the first of them low."""
    import numpy as np

    shifted = (integers + np.int8(8)).astype(np.uint8)
    packed: npt.NDArray[np.uint8] = shifted[:, ::2] | shifted[:, 1::2] << np.uint8(4)
    return packed


def rounded(weight: npt.NDArray[np.float32], scheme: Scheme | None) -> npt.NDArray[np.float32]:
    """Return what `MatMulNBits` computes with for the (out, in) matrix `weight` quantized by `scheme`."""
    import numpy as np

    if scheme is None or not scheme.group_size:
        return weight
    packed, scales = quantize(weight, scheme.bits, scheme.group_size)
    integers = packed if scheme.bits == 8 else np.stack([packed & 0xF, packed >> 4], axis=-1)
    groups = integers.reshape(*scales.shape, scheme.group_size).astype(np.int16) - (1 << scheme.bits >> 1)
    return dequantized(groups.reshape(weight.shape), scales)


def _halved(name: str, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    import numpy as np

    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"{name} holds values that float16 cannot hold.", remedy="Choose another policy.")
    return half


def _dtype(name: str) -> int:
    from onnx import TensorProto

    return int(TensorProto.DataType.Value(name))
