"""Which quantized format a checkpoint is of, and its tensors as those of the model that was quantized."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
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
# Of activations and of the key-value cache, which are not quantized here: what a de-quantized layer has no use for.
_OTHER_SCALES = ("input_scale", "input_scale_ub", "activation_scale", "input_zero_point", "output_scale")
_CACHE_SCALES = ("q_scale", "k_scale", "v_scale", "kv_scale")
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


def without_leftovers(checkpoint: Checkpoint, used: Collection[str]) -> Checkpoint:
    """Return `checkpoint` without biases of zeros that nothing has a use for: AutoGPTQ gave every layer one."""
    tensors = checkpoint.tensors
    idle = {
        name
        for name, tensor in tensors.items()
        if name.endswith(".bias") and name not in used
        if isinstance(tensors.get(f"{name.removesuffix('bias')}weight"), QuantizedWeight)
        if len(tensor.shape) == 1 and not tensor.read().any()
    }
    return attrs.evolve(checkpoint, tensors={name: each for name, each in tensors.items() if name not in idle})


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
        return StoredFormat(marks=("weight", "weight_scale_inv", "weight_scale", *_OTHER_SCALES), weight=_fp8)
    if method == "compressed-tensors":
        marks = ("weight", "weight_scale", "weight_zero_point", "weight_packed", "weight_shape", "weight_g_idx")
        return StoredFormat(marks=(*marks, *_OTHER_SCALES), weight=_compressed)
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
        if (not part or layer not in quantized) and name.rpartition(".")[2] not in _CACHE_SCALES:
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
    # bitsandbytes may keep its bytes in words of another type (`bnb_4bit_quant_storage`).
    packed = any(part.startswith(_BNB_STATE) for part in parts)
    return weight is None or packed or weight.dtype in ("I8", "U8", "F8_E4M3")


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
    words, out = parts["qweight"].shape
    if "g_idx" in parts and settings.get("dynamic"):  # GPTQModel's bits that differ from layer to layer
        (inputs,) = parts["g_idx"].shape
        bits = words * 32 // _size(inputs)
    if type(bits) is not int or bits not in _BITS:
        raise UnreadableError(f"of GPTQ, {', '.join(map(str, _BITS))} bits are read, not {bits}")
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
    groups = settings.get("config_groups") or {}
    weights = [dict(group.get("weights") or {}) for group in groups.values()]
    if all(each.get("symmetric", True) for each in weights):  # older versions stored zero points of zeros
        parts = {part: tensor for part, tensor in parts.items() if part != "weight_zero_point"}
    if "weight_packed" not in parts:
        weight, blocks = parts["weight"], {tuple(each.get("block_structure") or ()) for each in weights}
        tall, wide = blocks.pop() if len(blocks) == 1 and blocks != {()} else (0, 0)
        block = (_size(tall), _size(wide)) if tall else None
        return ScaledWeight(
            name=name, shape=weight.shape, path=weight.path, parts=parts, scale="weight_scale", block=block
        )
    bits: set[Any] = {each.get("num_bits") for each in weights}
    if len(bits) != 1 or not bits <= set(_BITS) or {each.get("type", "int") for each in weights} != {"int"}:
        raise UnreadableError("of packed weights, integers of one width are read")
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
