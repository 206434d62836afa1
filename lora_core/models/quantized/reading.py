"""Which quantized format a checkpoint is of, and its tensors as those of the model that was quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs

from lora_core.errors import Problem
from lora_core.intake.parsing import UNREADABLE
from lora_core.intake.plain_json import parse_json
from lora_core.models.checkpoint import Checkpoint
from lora_core.models.quantized.weights import (
    AwqWeight,
    Bnb4bitWeight,
    GptqWeight,
    PackedWeight,
    QuantizedWeight,
    ScaledWeight,
)
from lora_core.tensors import LazyTensor, StoredTensor

Parts = dict[str, StoredTensor]
_BNB_STATE = "weight.quant_state.bitsandbytes__"
_BITS = (2, 4, 8)
_STATE = 1 << 16
"""Bytes of a quant_state, which has some hundred."""
_SHAPE_BYTES = 16
"""Two numbers of 64 bits."""


class UnreadableError(Exception):
    """A format, or a kind of it, that is not read; says why."""


@attrs.frozen(kw_only=True)
class StoredFormat:
    """How a format stores layers: the `marks` that end the names of a quantized layer's tensors, and the weight made of
    them.
    """

    marks: tuple[str, ...]
    weight: Callable[[str, Parts, Mapping[str, Any]], QuantizedWeight]


def dequantized(
    checkpoint: Checkpoint, settings: Mapping[str, Any], where: str
) -> tuple[Checkpoint, str, list[Problem]]:
    """Return `checkpoint` with the weights that its quantized ones stand for, what it is in words, and what stands
    against reading it. `settings` are its `quantization_config`.
    """
    method = str(settings.get("quant_method", "unknown")) if isinstance(settings, Mapping) else "unknown"
    try:
        kind = _format(method, settings)
        tensors = _read(checkpoint, kind, settings)
    except (UnreadableError, *UNREADABLE) as error:
        said = isinstance(error, UnreadableError)
        reason = str(error) if said else f"its tensors are not as that format has them: {error!r}"
        problem = Problem(
            what=f"The checkpoint is already quantized ({method}), and {reason}",
            where=f"{where}: quantization_config",
            remedy="Give the float32, float16 or bfloat16 checkpoint and choose a policy with --policy.",
        )
        return checkpoint, method, [problem]
    return attrs.evolve(checkpoint, tensors=tensors), method, []


def _format(method: str, settings: Mapping[str, Any]) -> StoredFormat:
    if method == "bitsandbytes":
        if settings.get("load_in_8bit") or settings.get("_load_in_8bit"):
            return StoredFormat(marks=("weight", "SCB", "weight_format"), weight=_int8)
        return StoredFormat(marks=("weight",), weight=_bnb)
    if method == "gptq":
        return StoredFormat(marks=("qweight", "qzeros", "scales", "g_idx"), weight=_gptq)
    if method == "awq":
        if str(settings.get("version", "gemm")).lower() != "gemm" or settings.get("bits", 4) != 4:
            raise UnreadableError("of AWQ, version gemm with 4 bits is read")
        return StoredFormat(marks=("qweight", "qzeros", "scales"), weight=_awq)
    if method in ("fp8", "fbgemm_fp8"):
        return StoredFormat(marks=("weight", "weight_scale_inv", "weight_scale", "activation_scale"), weight=_fp8)
    if method == "compressed-tensors":
        marks = ("weight", "weight_scale", "input_scale", "weight_packed", "weight_shape")
        return StoredFormat(marks=marks, weight=_compressed)
    raise UnreadableError("is of a format that is not read")


def _read(checkpoint: Checkpoint, kind: StoredFormat, settings: Mapping[str, Any]) -> dict[str, LazyTensor]:
    layers: dict[str, Parts] = {}
    for name, tensor in checkpoint.tensors.items():
        layer, part = _split(name, kind)
        if part and isinstance(tensor, StoredTensor):
            layers.setdefault(layer, {})[part] = tensor
    quantized = {layer: parts for layer, parts in layers.items() if _is_quantized(parts)}
    tensors: dict[str, LazyTensor] = {}
    for name, tensor in checkpoint.tensors.items():
        layer, part = _split(name, kind)
        if not part or layer not in quantized:
            tensors[name] = tensor
    for layer, parts in quantized.items():
        tensors[f"{layer}.weight"] = kind.weight(f"{layer}.weight", parts, settings)
    return tensors


def _split(name: str, kind: StoredFormat) -> tuple[str, str]:
    """Return the layer of a tensor and which part of it the tensor is; no part if it is not of a quantized layer."""
    layer, found, rest = name.partition(".weight.")
    if found:
        return layer, f"weight.{rest}"
    layer, _, last = name.rpartition(".")
    return (layer, last) if last in kind.marks else (name, "")


def _is_quantized(parts: Parts) -> bool:
    weight = parts.get("weight")
    return weight is None or weight.dtype in ("I8", "U8", "F8_E4M3")


def _size(value: object) -> int:
    """Return a number of rows, columns or values of a block; raises `ValueError` for what is none."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r} is no size")
    return value


def _bnb(name: str, parts: Parts, settings: Mapping[str, Any]) -> QuantizedWeight:  # noqa: ARG001 - the tensors say all
    state = next((part for part in parts if part.startswith(_BNB_STATE)), None)
    if state is None:
        raise UnreadableError(f"{name} has no quant_state beside it")
    if parts[state].size > _STATE:
        raise UnreadableError(f"the quant_state of {name} has {parts[state].size} bytes")
    told = parse_json(parts[state].read_bytes().tobytes())
    nested = told.get("nested_blocksize")
    out, inputs = told["shape"]
    return Bnb4bitWeight(
        name=name,
        shape=(_size(out), _size(inputs)),
        path=parts["weight"].path,
        parts=parts,
        block=_size(told["blocksize"]),
        nested_block=_size(nested) if nested else None,
        offset=float(told.get("nested_offset") or 0.0),
    )


def _int8(name: str, parts: Parts, settings: Mapping[str, Any]) -> QuantizedWeight:  # noqa: ARG001 - the tensors say all
    weight = parts["weight"]
    return ScaledWeight(name=name, shape=weight.shape, path=weight.path, parts=parts, scale="SCB", divisor=127.0)


def _gptq(name: str, parts: Parts, settings: Mapping[str, Any]) -> QuantizedWeight:
    bits = settings.get("bits")
    if type(bits) is not int or bits not in _BITS:
        raise UnreadableError(f"of GPTQ, {', '.join(map(str, _BITS))} bits are read, not {bits}")
    words, out = parts["qweight"].shape
    return GptqWeight(
        name=name,
        shape=(out, words * 32 // bits),
        path=parts["qweight"].path,
        parts=parts,
        bits=bits,
        zero_offset=0 if settings.get("checkpoint_format") == "gptq_v2" else 1,
    )


def _awq(name: str, parts: Parts, settings: Mapping[str, Any]) -> QuantizedWeight:  # noqa: ARG001 - the tensors say all
    inputs, words = parts["qweight"].shape
    return AwqWeight(name=name, shape=(words * 8, inputs), path=parts["qweight"].path, parts=parts)


def _fp8(name: str, parts: Parts, settings: Mapping[str, Any]) -> QuantizedWeight:
    weight = parts["weight"]
    scale = "weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"
    given = settings.get("weight_block_size")
    block = (_size(given[0]), _size(given[1])) if given else None
    return ScaledWeight(name=name, shape=weight.shape, path=weight.path, parts=parts, scale=scale, block=block)


def _compressed(name: str, parts: Parts, settings: Mapping[str, Any]) -> QuantizedWeight:
    if "weight_packed" not in parts:
        weight = parts["weight"]
        return ScaledWeight(name=name, shape=weight.shape, path=weight.path, parts=parts, scale="weight_scale")
    groups = settings.get("config_groups") or {}
    weights = [dict(group.get("weights") or {}) for group in groups.values()]
    bits: set[Any] = {each.get("num_bits") for each in weights}
    if len(bits) != 1 or not bits <= set(_BITS) or not all(each.get("symmetric", True) for each in weights):
        raise UnreadableError("of packed weights, symmetric ones of one width are read")
    shape = parts["weight_shape"]
    if shape.size != _SHAPE_BYTES:
        raise UnreadableError(f"the shape of {name} is stored in {shape.size} bytes")
    out, inputs = shape.read_bytes().view("<i8").tolist()
    return PackedWeight(
        name=name,
        shape=(_size(out), _size(inputs)),
        path=parts["weight_packed"].path,
        parts=parts,
        bits=int(bits.pop()),
    )
