"""Turn a policy's decisions into torchao's and ExecuTorch's own quantization of the base."""

from __future__ import annotations

import contextlib
import io
import math
from typing import TYPE_CHECKING, Any, Literal

from lora_core.errors import ModelError, Problem
from lora_core.models.base import BaseModel
from lora_core.quant.policy import Assignment, QuantPolicy, Scheme
from lora_core_xnnpack.adapter_dtype import ADAPTER_SCHEMES, LARGEST_HALF
from lora_core_xnnpack.scale_search import searching

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

_LINEAR_BITS = {"int8_dynamic": (4, 8), "float": (8, 16)}
_GROUPS_OF = 32  # ExecuTorch 1.5.1, `NodeVisitor._check_per_channel_group_params`, which asserts it half way through


def unsupported(policy: QuantPolicy) -> list[Problem]:
    """Return what XNNPACK through ExecuTorch cannot do of `policy`."""
    problems = []
    for kind, scheme in (("linear layers", policy.linear), ("the output head", policy.output)):
        if scheme is None:
            continue
        if scheme.bits not in _LINEAR_BITS.get(scheme.activations, ()):
            problems.append(f"{kind} with {scheme.bits}-bit weights and {scheme.activations} activations")
        elif scheme.group_size and (scheme.bits != 4 or scheme.group_size % _GROUPS_OF):
            problems.append(f"{kind} with {scheme.bits}-bit weights in groups of {scheme.group_size}")
    if policy.embedding is not None and policy.embedding.activations != "float":
        problems.append("embeddings with quantized activations")
    if policy.lora is not None and policy.lora not in ADAPTER_SCHEMES.values():
        problems.append(f"LoRA matrices with {policy.lora.bits} bits and {policy.lora.activations} activations")
    return [
        Problem(
            what=f"Policy {policy.name!r} asks for {what}, which the XNNPACK backend does not do",
            remedy="It can do fp32, fp16, 8da4w, 8da8w and c8w, each with 4- or 8-bit embeddings; 4-bit weights per "
            "channel or in groups of 32, 64 and so on, 8-bit ones per channel.",
        )
        for what in problems
    ]


def is_half(scheme: Scheme) -> bool:
    """Say whether `scheme` has weights rounded to float16, with nothing quantized."""
    return scheme.bits == 16 and scheme.activations == "float" and not scheme.group_size


def is_weight_only(scheme: Scheme) -> bool:
    """Say whether `scheme` has the linear weights in 8 bits that XNNPACK takes with float inputs: by row."""
    return scheme.bits == 8 and scheme.activations == "float" and not scheme.group_size


def quantize(base: BaseModel, assignment: Assignment, *, scale_search: str) -> None:
    """Quantize the base in place as decided, before any LoRA is attached.

    `scale_search` is `fitted`, `affine` or `hqq` (`scale_search.py`). Embeddings come first, as in ExecuTorch's own
    exporter: an output head tied to an embedding keeps its own float weight until it is quantized itself.
    """
    with searching(scale_search):
        _quantize(base, assignment, scale_search)


def quantized_layer(
    weight: torch.Tensor, kind: Literal["linear", "embedding"], scheme: Scheme, *, scale_search: str
) -> torch.nn.Module:
    """Return a layer of `kind` with the given float32 weight (rows, width), quantized as `quantize` does it.

    Some rows of a weight give the same as those rows of the whole, but for `hqq`, which stops when all rows are done.
    """
    import torch

    rows, width = weight.shape
    if is_half(scheme):
        return _half_layer(weight, kind)
    holder = torch.nn.Module()
    with searching(scale_search):
        if kind == "embedding":
            holder.layer = torch.nn.Embedding(rows, width, _weight=weight)
            _quantize_embedding(holder, "layer", scheme, searched=_searched(scheme, scale_search))
        else:
            holder.layer = torch.nn.Linear(width, rows, bias=False, device="meta")
            holder.layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            quantize_linear(holder, scheme, {"layer"}, searched=_searched(scheme, scale_search))
            if is_weight_only(scheme):
                return _weight_only(holder.layer)
    return holder.get_submodule("layer")


def rounded_weight(integers: npt.NDArray[np.int8], scales: npt.NDArray[np.float32], scheme: Scheme) -> Any:
    """Return torchao's tensor of integers (rows, inputs) and scales (rows, groups) as `quantize_linear` makes it."""
    import torch
    from torchao.quantization import IntxUnpackedToInt8Tensor
    from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
        IntxUnpackedToInt8TensorActivationQuantization as Activations,
    )

    scale = torch.from_numpy(scales)
    return IntxUnpackedToInt8Tensor(
        qdata=torch.from_numpy(integers),
        scale=scale,
        zero_point=torch.zeros_like(scale, dtype=torch.int8),
        target_dtype=torch.int4 if scheme.bits == 4 else torch.int8,
        block_size=(1, scheme.group_size or integers.shape[1]),
        dtype=torch.float32,
        activation_quantization=Activations.INT8_ASYM_PER_TOKEN,
    )


def _half_layer(
    weight: torch.Tensor, kind: Literal["linear", "embedding"], bias: torch.Tensor | None = None
) -> torch.nn.Module:
    """Return a layer with float16 weights; raises `ModelError` for a weight that is too large for them."""
    from lora_core_xnnpack.lowering.half_layers import HalfEmbedding, HalfLinear

    largest = float(weight.detach().abs().max())
    if LARGEST_HALF < largest < math.inf:
        raise ModelError(
            f"A weight of the base has a value of {largest:.3g}, and float16 ends at {LARGEST_HALF}.",
            remedy="Export the bundle with --policy fp32.",
        )
    return HalfEmbedding(weight) if kind == "embedding" else HalfLinear(weight, bias)


def _weight_only(layer: Any) -> torch.nn.Module:
    from lora_core_xnnpack.lowering.half_layers import WeightOnlyLinear

    return WeightOnlyLinear(layer.weight, layer.bias)


def _searched(scheme: Scheme, scale_search: str) -> bool:
    """Say whether scales are searched: 8 bits lose so little that `fitted` leaves them by range."""
    return scale_search == "hqq" or (scale_search == "fitted" and scheme.bits < 8)


def _quantize(base: BaseModel, assignment: Assignment, scale_search: str) -> None:
    module = base.module
    decided = [(layer, assignment.schemes.get(layer.name)) for layer in base.summary.layers]
    for layer, scheme in decided:
        if scheme is not None and is_half(scheme):
            path = base.paths[layer.name]
            old = module.get_submodule(path)
            put_layer(module, path, _half_layer(old.weight, layer.kind, getattr(old, "bias", None)))
        elif layer.kind == "embedding" and scheme is not None:
            _quantize_embedding(module, base.paths[layer.name], scheme, searched=_searched(scheme, scale_search))
    linear: dict[Scheme, set[str]] = {}
    for layer, scheme in decided:
        if layer.kind == "linear" and scheme is not None and not is_half(scheme):
            linear.setdefault(scheme, set()).add(base.paths[layer.name])
    for scheme, paths in linear.items():
        quantize_linear(module, scheme, paths, searched=_searched(scheme, scale_search))
        for path in paths if is_weight_only(scheme) else ():
            put_layer(module, path, _weight_only(module.get_submodule(path)))


def quantize_linear(module: torch.nn.Module, scheme: Scheme, paths: set[str], *, searched: bool) -> None:
    """Quantize the linear layers at `paths` of `module` in place, as `scheme` says; with `searched` scales."""
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    algorithm = "hqq_scale_only" if searched else "affine"
    if is_weight_only(scheme):
        config: Any = IntxWeightOnlyConfig(
            weight_dtype=torch.int8, granularity=PerAxis(0), intx_choose_qparams_algorithm=algorithm
        )
    else:
        config = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4 if scheme.bits == 4 else torch.int8,
            weight_granularity=PerGroup(scheme.group_size) if scheme.group_size else PerAxis(0),
            intx_choose_qparams_algorithm=algorithm,
        )
    quantize_(module, config, filter_fn=lambda _layer, path: path in paths)


def _quantize_embedding(module: torch.nn.Module, path: str, scheme: Scheme, *, searched: bool) -> None:
    import torch
    from executorch.examples.models.llama.source_transformation.quantize import EmbeddingQuantHandler

    holder = torch.nn.Module()
    holder.embedding = module.get_submodule(path)
    handler = EmbeddingQuantHandler(
        holder,
        bitwidth=scheme.bits,
        group_size=scheme.group_size,
        packed=scheme.bits == 4,
        quantize_with_hqq=searched,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        handler.quantized_model()
    put_layer(module, path, holder.embedding)


def put_layer(module: torch.nn.Module, path: str, layer: torch.nn.Module) -> None:
    """Put `layer` where `module` has another one, at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)
