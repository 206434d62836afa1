"""Stored weights of each quantized format as lazy tensors: integers and scales become the weight when read."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from lora_core.errors import ModelError
from lora_core.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]

_TYPES = {"I8": "<i1", "U8": "<u1", "I32": "<i4", "I64": "<i8"}
# Columns that AutoAWQ's `gemm` puts into one word, by their place in it (autoawq, utils/packing_utils.py).
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def raw_values(tensor: StoredTensor) -> npt.NDArray[Any]:
    """Return the integers of a tensor, or the values of an 8-bit float or wider type, in float32."""
    if tensor.dtype in _TYPES:
        return tensor.read_bytes().view(_TYPES[tensor.dtype]).reshape(tensor.shape)
    if tensor.dtype == "F8_E4M3":
        return _float8()[tensor.read_bytes()].reshape(tensor.shape)
    return tensor.read()


@attrs.frozen(kw_only=True)
class QuantizedWeight:
    """The weight of one layer (a `LazyTensor`), of `shape` (out, in), made of the tensors of `parts` by their endings.

    `name` is unique in its checkpoint, `path` the file of its integers.
    """

    name: str
    shape: tuple[int, ...]
    path: Path
    parts: dict[str, StoredTensor] = attrs.field(repr=False)
    dtype: str = "F32"

    @abstractmethod
    def read(self) -> Float32:
        """Return the float32 weight that the quantized one stands for."""

    def values(self, ending: str) -> npt.NDArray[Any]:
        """Return the values of a part; raises `ModelError` if it is not stored."""
        if ending not in self.parts:
            raise ModelError(
                f"Of the quantized {self.name} there is no tensor {self.name.removesuffix('weight')}{ending}.",
                where=str(self.path),
                remedy="Copy or download the checkpoint again.",
            )
        return raw_values(self.parts[ending])


@attrs.frozen(kw_only=True)
class GptqWeight(QuantizedWeight):
    """`qweight` (in * bits / 32, out), `qzeros` (groups, out * bits / 32), `scales` (groups, out), `g_idx` (in,).

    Of AutoGPTQ's and GPTQModel's checkpoints; `zero_offset` is what the first kind stores less than the zero point.
    """

    bits: int
    zero_offset: int

    def read(self) -> Float32:
        """Return `scales[g] * (q - zeros[g])` of every input, turned around."""
        group = self.values("g_idx")
        scales = self.values("scales").astype(np.float32)
        words = self.values("qweight").view(np.uint32)
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)
        mask = np.uint32((1 << self.bits) - 1)
        q = ((words[:, None, :] >> shifts[None, :, None]) & mask).reshape(self.shape[1], self.shape[0])
        zeros = (self.values("qzeros").view(np.uint32)[:, :, None] >> shifts) & mask
        zeros = (zeros.reshape(len(scales), -1) + np.uint32(self.zero_offset)) & mask
        weight = (q.astype(np.float32) - zeros.astype(np.float32)[group]) * scales[group]
        return np.ascontiguousarray(weight.T)


@attrs.frozen(kw_only=True)
class AwqWeight(QuantizedWeight):
    """`qweight` (in, out / 8), `qzeros` (groups, out / 8) and `scales` (groups, out) of AutoAWQ's `gemm`, 4 bits."""

    def read(self) -> Float32:
        """Return `(q - zeros) * scales` of every input, turned around."""
        scales = self.values("scales").astype(np.float32)
        each = self.shape[1] // len(scales)
        q, zeros = (_awq(self.values(part)) for part in ("qweight", "qzeros"))
        weight = (q - np.repeat(zeros, each, axis=0)) * np.repeat(scales, each, axis=0)
        return np.ascontiguousarray(weight.T)


@attrs.frozen(kw_only=True)
class ScaledWeight(QuantizedWeight):
    """`weight` as integers or 8-bit floats, and a scale for everything, each row, or blocks of it: `scale` is its
    ending. `divisor` divides the scales (bitsandbytes keeps the largest value of a row instead of a step).
    """

    scale: str
    block: tuple[int, int] | None = None
    divisor: float = 1.0

    def read(self) -> Float32:
        """Return `weight * scale`."""
        weight = self.values("weight").astype(np.float32)
        scale = self.values(self.scale).astype(np.float32) / np.float32(self.divisor)
        if self.block is not None and scale.ndim == 2:
            rows, columns = self.shape
            scale = np.repeat(np.repeat(scale, self.block[0], axis=0)[:rows], self.block[1], axis=1)[:, :columns]
        elif scale.size > 1:
            scale = scale.reshape(-1, 1)
        return np.ascontiguousarray(weight * scale)


@attrs.frozen(kw_only=True)
class PackedWeight(QuantizedWeight):
    """`weight_packed` (out, in * bits / 32) and `weight_scale` (out, groups) of compressed-tensors, symmetric."""

    bits: int

    def read(self) -> Float32:
        """Return `(q - 2^(bits - 1)) * scale`."""
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)
        words = self.values("weight_packed").view(np.uint32)
        q = (words[:, :, None] >> shifts) & np.uint32((1 << self.bits) - 1)
        values = q.reshape(self.shape[0], -1)[:, : self.shape[1]].astype(np.float32) - np.float32(1 << (self.bits - 1))
        scale = self.values("weight_scale").astype(np.float32)
        return values * np.repeat(scale, -(-self.shape[1] // scale.shape[1]), axis=1)[:, : self.shape[1]]


@attrs.frozen(kw_only=True)
class Bnb4bitWeight(QuantizedWeight):
    """`weight` (bytes of two values), `weight.absmax` by blocks of `block` values, `weight.quant_map` of 16 values.

    With `nested_block`, `weight.absmax` is quantized too: of blocks of that many, plus `offset`.
    """

    block: int
    nested_block: int | None = None
    offset: float = 0.0

    def read(self) -> Float32:
        """Return `quant_map[q] * absmax` (bitsandbytes, `dequantize_4bit`)."""
        packed = self.parts["weight"].read_bytes()
        codes = np.empty(packed.size * 2, np.uint8)
        codes[0::2], codes[1::2] = packed >> 4, packed & 15
        values = self.values("weight.quant_map").astype(np.float32)[codes[: self.shape[0] * self.shape[1]]]
        scales = np.repeat(self._absmax(), self.block)[: values.size]
        result: Float32 = (values * scales).reshape(self.shape)
        return result

    def _absmax(self) -> Float32:
        absmax = self.values("weight.absmax").reshape(-1)
        if self.nested_block is None:
            return absmax.astype(np.float32)
        values = self.values("weight.nested_quant_map").astype(np.float32)[absmax]
        scales = np.repeat(self.values("weight.nested_absmax").astype(np.float32), self.nested_block)[: values.size]
        found: Float32 = values * scales + np.float32(self.offset)
        return found


def _awq(words: npt.NDArray[Any]) -> Float32:
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    q = (words.view(np.uint32)[:, :, None] >> shifts) & np.uint32(15)
    return q[:, :, _AWQ_ORDER].reshape(len(words), -1).astype(np.float32)


def _float8() -> Float32:
    """Return the value of each byte as an 8-bit float with 4 bits of exponent (OCP 8-bit floating point, E4M3)."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size = np.where((byte & 127) == 127, np.nan, size)
    return np.where(byte > 127, -size, size).astype(np.float32)
