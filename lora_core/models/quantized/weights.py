"""Stored weights of each quantized format as lazy tensors: integers and scales become the weight when read."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from lora_core.errors import ModelError
from lora_core.intake.parsing import UNREADABLE
from lora_core.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]

_TYPES = {"I8": "<i1", "U8": "<u1", "I32": "<i4", "I64": "<i8"}
_COPY_AGAIN = "Copy or download the checkpoint again."
# Columns that AutoAWQ's `gemm` puts into one word, by their place in it (autoawq, utils/packing_utils.py).
_AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]


def require(fits: bool, what: str) -> None:
    """Raise `ValueError` saying `what` is wrong unless it `fits`."""
    if not fits:
        raise ValueError(what)


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

    def read(self) -> Float32:
        """Return the float32 weight that the quantized one stands for; raises `ModelError` if its parts do not fit."""
        try:
            with np.errstate(all="ignore"):  # values that are not finite are the weight's own
                weight = self.dequantized()
            require(weight.shape == self.shape, f"they give {weight.shape}")
        except UNREADABLE as error:
            what = f"The tensors of the quantized {self.name} do not make a weight of {self.shape}: {error}"
            raise ModelError(what, where=str(self.path), remedy=_COPY_AGAIN) from error
        return weight

    @abstractmethod
    def dequantized(self) -> Float32:
        """Return the weight; raises one of `UNREADABLE` for parts that do not fit each other.

        What parts say is compared with their shapes before anything is repeated as often as they say.
        """

    def words(self, ending: str) -> npt.NDArray[np.uint32]:
        """Return the 32-bit words of a part."""
        values = self.values(ending)
        require(values.ndim == 2 and values.dtype == np.int32, f"{ending} is no matrix of 32-bit words")
        return values.view(np.uint32)

    def groups(self, ending: str, columns: int) -> Float32:
        """Return scales of groups (groups, `columns`)."""
        values = self.values(ending)
        fits = values.ndim == 2 and len(values) > 0 and values.shape[1] == columns
        require(fits, f"{ending} has the shape {values.shape}")
        return values.astype(np.float32)

    def values(self, ending: str) -> npt.NDArray[Any]:
        """Return the values of a part; raises `ModelError` if it is not stored."""
        if ending not in self.parts:
            raise ModelError(
                f"Of the quantized {self.name} there is no tensor {self.name.removesuffix('weight')}{ending}.",
                where=str(self.path),
                remedy=_COPY_AGAIN,
            )
        return raw_values(self.parts[ending])


@attrs.frozen(kw_only=True)
class GptqWeight(QuantizedWeight):
    """`qweight` (in * bits / 32, out), `qzeros` (groups, out * bits / 32), `scales` (groups, out), `g_idx` (in,).

    Of AutoGPTQ's and GPTQModel's checkpoints; `zero_offset` is what the first kind stores less than the zero point.
    """

    bits: int
    zero_offset: int

    def dequantized(self) -> Float32:
        """Return `scales[g] * (q - zeros[g])` of every input, turned around."""
        outputs, inputs = self.shape
        scales, words = self.groups("scales", outputs), self.words("qweight")
        group = self._group_of_input(inputs, len(scales))
        known = group.shape == (inputs,) and bool(((group >= 0) & (group < len(scales))).all())
        require(known, f"g_idx is not one of {len(scales)} groups for each of {inputs} inputs")
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)
        mask = np.uint32((1 << self.bits) - 1)
        q = ((words[:, None, :] >> shifts[None, :, None]) & mask).reshape(inputs, outputs)
        zeros = (self.words("qzeros")[:, :, None] >> shifts) & mask
        zeros = (zeros.reshape(scales.shape) + np.uint32(self.zero_offset)) & mask
        weight = (q.astype(np.float32) - zeros.astype(np.float32)[group]) * scales[group]
        return np.ascontiguousarray(weight.T)

    def _group_of_input(self, inputs: int, groups: int) -> npt.NDArray[Any]:
        """Return the group of each input, one after another where no `g_idx` says it."""
        if "g_idx" in self.parts:
            return self.values("g_idx")
        require(0 < groups <= inputs and inputs % groups == 0, f"{groups} groups are not of {inputs} inputs")
        return np.arange(inputs) // (inputs // groups)


@attrs.frozen(kw_only=True)
class AwqWeight(QuantizedWeight):
    """`qweight` (in, out / 8), `qzeros` (groups, out / 8) and `scales` (groups, out) of AutoAWQ's `gemm`, 4 bits."""

    def dequantized(self) -> Float32:
        """Return `(q - zeros) * scales` of every input, turned around."""
        outputs, inputs = self.shape
        scales = self.groups("scales", outputs)
        q, zeros = (_awq(self.words(part)) for part in ("qweight", "qzeros"))
        require(q.shape == (inputs, outputs), f"qweight holds {q.shape}")
        require(zeros.shape == scales.shape and inputs % len(scales) == 0, f"qzeros holds {zeros.shape}")
        each = inputs // len(scales)
        weight = (q - np.repeat(zeros, each, axis=0)) * np.repeat(scales, each, axis=0)
        return np.ascontiguousarray(weight.T)


@attrs.frozen(kw_only=True)
class ScaledWeight(QuantizedWeight):
    """`weight` as integers or 8-bit floats, and a scale for everything, each row, groups of a row, or blocks of it:
    `scale` is its ending. `divisor` divides the scales (bitsandbytes keeps the largest value of a row, and no step).
    """

    scale: str
    block: tuple[int, int] | None = None
    divisor: float = 1.0

    def dequantized(self) -> Float32:
        """Return `(weight - zero point) * scale`."""
        scale = self._spread(self.values(self.scale).astype(np.float32) / np.float32(self.divisor))
        weight = self.values("weight").astype(np.float32)
        if "weight_zero_point" in self.parts:
            weight -= self._spread(self.values("weight_zero_point").astype(np.float32))
        return np.ascontiguousarray(weight * scale)

    def _spread(self, scale: Float32) -> Float32:
        """Return scales, or zero points, so that they fit the weight."""
        rows, columns = self.shape
        if self.block is not None and scale.ndim == 2:
            blocks = tuple(-(-size // step) for size, step in zip(self.shape, self.block, strict=True))
            require(min(self.block) > 0 and scale.shape == blocks, f"{self.scale} has the shape {scale.shape}")
            tall, wide = min(self.block[0], rows), min(self.block[1], columns)
            scale = np.repeat(np.repeat(scale, tall, axis=0)[:rows], wide, axis=1)[:, :columns]
        elif scale.ndim == 2 and scale.shape[1] > 1:
            fits = len(scale) == rows and columns % scale.shape[1] == 0
            require(fits, f"{self.scale} has the shape {scale.shape}")
            scale = np.repeat(scale, columns // scale.shape[1], axis=1)
        elif scale.size > 1:
            scale = scale.reshape(rows, 1)
        return scale


@attrs.frozen(kw_only=True)
class PackedWeight(QuantizedWeight):
    """`weight_packed` (out, in * bits / 32) and `weight_scale` (out, groups) of compressed-tensors.

    `weight_zero_point` (out * bits / 32, groups) is there where zero is no middle. Groups are of inputs that follow
    each other, or those that `weight_g_idx` (in,) says.
    """

    bits: int

    def dequantized(self) -> Float32:
        """Return `(q - zero point) * scale`; the zero point is 2^(bits - 1) where none is stored."""
        outputs, inputs = self.shape
        values = self._unpacked(self.words("weight_packed"))[:, :inputs]
        require(values.shape == self.shape, f"weight_packed holds {values.shape}")
        scale = self.values("weight_scale").astype(np.float32)
        fits = scale.ndim == 2 and len(scale) == outputs and 0 < scale.shape[1] <= inputs
        require(fits, f"weight_scale has the shape {scale.shape}")
        if "weight_zero_point" in self.parts:
            zeros = self._unpacked(self.words("weight_zero_point").T)[:, :outputs].T
            require(zeros.shape == scale.shape, f"weight_zero_point holds {zeros.shape}")
        else:
            zeros = np.full_like(scale, 1 << (self.bits - 1))
        group = self._groups(inputs, scale.shape[1])
        weight: Float32 = (values - zeros[:, group]) * scale[:, group]
        return weight

    def _unpacked(self, words: npt.NDArray[np.uint32]) -> Float32:
        shifts = np.arange(0, 32, self.bits, dtype=np.uint32)
        values = (words[:, :, None] >> shifts) & np.uint32((1 << self.bits) - 1)
        return values.reshape(len(words), -1).astype(np.float32)

    def _groups(self, inputs: int, count: int) -> npt.NDArray[Any]:
        """Return the group of each input."""
        group = self.values("weight_g_idx") if "weight_g_idx" in self.parts else np.array([-1])
        if (group == -1).any():  # what compressed-tensors stores where groups follow each other
            return np.arange(inputs) // -(-inputs // count)
        known = group.shape == (inputs,) and bool(((group >= 0) & (group < count)).all())
        require(known, f"weight_g_idx is not one of {count} groups for each of {inputs} inputs")
        return group


@attrs.frozen(kw_only=True)
class Bnb4bitWeight(QuantizedWeight):
    """`weight` (bytes of two values), `weight.absmax` by blocks of `block` values, `weight.quant_map` of 16 values.

    With `nested_block`, `weight.absmax` is quantized too: of blocks of that many, plus `offset`.
    """

    block: int
    nested_block: int | None = None
    offset: float = 0.0

    def dequantized(self) -> Float32:
        """Return `quant_map[q] * absmax` (bitsandbytes, `dequantize_4bit`)."""
        size = self.shape[0] * self.shape[1]
        packed = self.parts["weight"].read_bytes()
        require(packed.size == -(-size // 2), f"weight has {packed.size} bytes")
        codes = np.empty(packed.size * 2, np.uint8)
        codes[0::2], codes[1::2] = packed >> 4, packed & 15
        values = self.values("weight.quant_map").astype(np.float32)[codes[:size]]
        scales = _repeated(self._absmax(), self.block, size)
        result: Float32 = (values * scales).reshape(self.shape)
        return result

    def _absmax(self) -> Float32:
        absmax = self.values("weight.absmax").reshape(-1)
        if self.nested_block is None:
            return absmax.astype(np.float32)
        values = self.values("weight.nested_quant_map").astype(np.float32)[absmax]
        scales = _repeated(
            self.values("weight.nested_absmax").astype(np.float32).reshape(-1), self.nested_block, values.size
        )
        found: Float32 = values * scales + np.float32(self.offset)
        return found


def _repeated(scales: Float32, block: int, size: int) -> Float32:
    """Return the scale of each of `size` values that are scaled in blocks."""
    require(block > 0 and scales.shape == (-(-size // block),), f"{scales.shape} scales are for blocks of {block}")
    return np.repeat(scales, min(block, size))[:size]


def _awq(words: npt.NDArray[np.uint32]) -> Float32:
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    q = (words[:, :, None] >> shifts) & np.uint32(15)
    return q[:, :, _AWQ_ORDER].reshape(len(words), -1).astype(np.float32)


def _float8() -> Float32:
    """Return the value of each byte as an 8-bit float with 4 bits of exponent (OCP 8-bit floating point, E4M3)."""
    byte = np.arange(256)
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size = np.where((byte & 127) == 127, np.nan, size)
    return np.where(byte > 127, -size, size).astype(np.float32)
