"""Quantization: the policies CoreML programs are made with, and schemes turned into torchao's calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from lora_core.errors import Problem
from lora_core.layers import LayerInfo
from lora_core.quant.policy import FP16, HALF, QuantPolicy, Scheme

if TYPE_CHECKING:
    import torch
    from torchao.quantization.quant_api import IntxWeightOnlyConfig

    from lora_core.preparation.rounded import RoundedLayers

_CHANNEL4 = Scheme(bits=4, granularity="channel")
_BLOCK4 = Scheme(bits=4, granularity="group", group_size=32)
# The head is where 4 bits cost most, and a tied one of the embedding's scheme is stored once.
_CHANNEL8 = Scheme(bits=8, granularity="channel")

POLICIES = (
    FP16,
    QuantPolicy(
        name="c4w",
        summary="4-bit linear layers with one scale per channel (Neural Engine), 8-bit head and embedding.",
        linear=_CHANNEL4,
        output=_CHANNEL8,
        embedding=_CHANNEL8,
    ),
    QuantPolicy(
        name="b4w",
        summary="4-bit linear layers in blocks of 32, 8-bit head and embedding.",
        linear=_BLOCK4,
        output=_CHANNEL8,
        embedding=_CHANNEL8,
    ),
    QuantPolicy(name="emb8", summary="8-bit embedding only.", linear=HALF, output=HALF, embedding=_CHANNEL8),
    QuantPolicy(
        name="emb4",
        summary="4-bit embedding in groups of 32 only.",
        linear=HALF,
        output=HALF,
        embedding=_BLOCK4,
    ),
)


def policy_problems(policy: QuantPolicy) -> list[Problem]:
    """Return what of `policy` CoreML programs cannot have."""
    problems = []
    if policy.lora not in (None, HALF):
        what = f"Policy {policy.name!r} quantizes LoRA matrices"
        problems.append(Problem(what=what, where="--policy", remedy="CoreML programs keep them in --dtype."))
    for kind in ("linear", "output", "embedding"):
        scheme: Scheme | None = getattr(policy, kind)
        wrong = _unsupported(scheme) if scheme is not None else None
        if wrong:
            what = f"Policy {policy.name!r} asks for {wrong} in {kind} layers, which CoreML programs do not have here"
            remedy = f"Choose one of {', '.join(known.name for known in POLICIES)}."
            problems.append(Problem(what=what, where="--policy", remedy=remedy))
    return problems


def apply(
    module: torch.nn.Module,
    schemes: Mapping[str, Scheme | None],
    layers: Sequence[LayerInfo],
    paths: Mapping[str, str],
) -> None:
    """Quantize `layers`, which are at `paths` of `module`, in place; a layer that was split is quantized part by part,
    which is exact for scales per channel or per group of inputs.
    """
    import torch
    from torchao.quantization.quant_api import quantize_

    for layer in layers:
        scheme = schemes.get(layer.name)
        if scheme is None or not quantizes(scheme):
            continue
        kind = torch.nn.Embedding if layer.kind == "embedding" else torch.nn.Linear
        quantize_(module, _config(scheme), _chooser(paths[layer.name], kind))


def quantizes(scheme: Scheme) -> bool:
    """Say whether a scheme is more than the precision of the program."""
    return scheme.bits != 16


def quantized(rows: torch.Tensor, kind: Literal["linear", "embedding"], scheme: Scheme) -> torch.Tensor:
    """Return some rows (out_features by in_features; of an embedding, tokens by features) of a layer's weight, as
    torchao's tensor: each row is quantized by itself.
    """
    import torch
    from torchao.quantization.quant_api import quantize_

    count, width = rows.shape
    layer: torch.nn.Module
    if kind == "embedding":
        layer = torch.nn.Embedding(count, width, _weight=rows)
    else:
        layer = torch.nn.Linear(width, count, bias=False, device="meta")
        layer.weight = torch.nn.Parameter(rows, requires_grad=False)
    layer.requires_grad_(False)
    quantize_(layer, _config(scheme), lambda _module, _name: True)
    made: torch.Tensor = layer.weight
    return made


def _config(scheme: Scheme) -> IntxWeightOnlyConfig:
    import torch
    from torchao.quantization.granularity import PerAxis, PerGroup
    from torchao.quantization.quant_api import IntxWeightOnlyConfig

    granularity = PerGroup(scheme.group_size) if scheme.group_size else PerAxis(0)
    return IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{scheme.bits}"), granularity=granularity)


def put_rounded(module: torch.nn.Module, layers: RoundedLayers, paths: Mapping[str, str]) -> None:
    """Give layers that `apply` has quantized the integers and scales of `layers`; parts of one that was split, those of
    their rows.
    """
    import torch
    from torchao.quantization import IntxUnpackedToInt8Tensor

    for name in layers.names:
        start = 0
        for part in module.get_submodule(paths[name]).modules():
            if isinstance(part, torch.nn.Linear):
                old = part.weight
                integers, scales = layers.rows(name, start, start + len(old))
                start += len(old)
                fields = {field: getattr(old, field) for field in old.tensor_attribute_names}
                made = IntxUnpackedToInt8Tensor(
                    qdata=torch.from_numpy(integers),
                    scale=torch.from_numpy(scales).to(old.scale.dtype),
                    zero_point=torch.zeros_like(old.zero_point),
                    **fields,
                )
                part.weight = torch.nn.Parameter(made, requires_grad=False)


def _chooser(path: str, kind: type[torch.nn.Module]) -> Callable[[torch.nn.Module, str], bool]:
    def chosen(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, kind) and (name == path or name.startswith(f"{path}."))

    return chosen


def _unsupported(scheme: Scheme) -> str | None:
    if scheme.activations != "float":
        return f"{scheme.activations} activations"
    if not scheme.symmetric:
        return "asymmetric weights"
    if scheme.bits not in (4, 8, 16):
        return f"{scheme.bits}-bit weights"
    if scheme.bits == 16 and scheme.group_size:
        return "groups of weights that are not quantized"
    if scheme.granularity == "tensor":
        return "one scale for a whole tensor"
    return None
