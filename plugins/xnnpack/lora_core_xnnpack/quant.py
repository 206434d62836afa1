"""Turn a policy's decisions into torchao's and ExecuTorch's own quantization of the base."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Literal

from lora_core.errors import Problem
from lora_core.models.base import BaseModel
from lora_core.quant.policy import Assignment, QuantPolicy, Scheme
from lora_core_xnnpack.scale_search import order_free_scale_search

if TYPE_CHECKING:
    import torch

_LINEAR_BITS = (4, 8)


def unsupported(policy: QuantPolicy) -> list[Problem]:
    """Return what XNNPACK through ExecuTorch cannot do of `policy`."""
    problems = []
    for kind, scheme in (("linear layers", policy.linear), ("the output head", policy.output)):
        if scheme is not None and (scheme.activations != "int8_dynamic" or scheme.bits not in _LINEAR_BITS):
            problems.append(f"{kind} with {scheme.bits}-bit weights and {scheme.activations} activations")
    if policy.embedding is not None and policy.embedding.activations != "float":
        problems.append("embeddings with quantized activations")
    if policy.lora is not None:
        problems.append("quantized LoRA matrices")
    return [
        Problem(
            what=f"Policy {policy.name!r} asks for {what}, which the XNNPACK backend does not do",
            remedy="It can do fp32, 8da4w and 8da8w, each with 4- or 8-bit embeddings.",
        )
        for what in problems
    ]


def quantize(base: BaseModel, assignment: Assignment, *, scale_search: str) -> None:
    """Quantize the base in place as decided, before any LoRA is attached.

    `scale_search` is `affine` or `hqq` (`scale_search.py`). Embeddings come first, as in ExecuTorch's own exporter: an
    output head tied to an embedding keeps its own float weight until it is quantized itself.
    """
    with order_free_scale_search():
        _quantize(base, assignment, hqq=scale_search == "hqq")


def quantized_layer(
    weight: torch.Tensor, kind: Literal["linear", "embedding"], scheme: Scheme, *, scale_search: str
) -> torch.nn.Module:
    """Return a layer of `kind` with the given float32 weight (rows, width), quantized as `quantize` does it.

    Some rows of a weight give the same as those rows of the whole, but for `hqq`, which stops when all rows are done.
    """
    import torch

    rows, width = weight.shape
    holder = torch.nn.Module()
    with order_free_scale_search():
        if kind == "embedding":
            holder.layer = torch.nn.Embedding(rows, width, _weight=weight)
            _quantize_embedding(holder, "layer", scheme, hqq=scale_search == "hqq")
        else:
            holder.layer = torch.nn.Linear(width, rows, bias=False, device="meta")
            holder.layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            _quantize_linear(holder, scheme, {"layer"}, hqq=scale_search == "hqq")
    return holder.get_submodule("layer")


def _quantize(base: BaseModel, assignment: Assignment, *, hqq: bool) -> None:
    module = base.module
    decided = [(layer, assignment.schemes.get(layer.name)) for layer in base.summary.layers]
    for layer, scheme in decided:
        if layer.kind == "embedding" and scheme is not None:
            _quantize_embedding(module, base.paths[layer.name], scheme, hqq=hqq)
    linear: dict[Scheme, set[str]] = {}
    for layer, scheme in decided:
        if layer.kind == "linear" and scheme is not None:
            linear.setdefault(scheme, set()).add(base.paths[layer.name])
    for scheme, paths in linear.items():
        _quantize_linear(module, scheme, paths, hqq=hqq)


def _quantize_linear(module: torch.nn.Module, scheme: Scheme, paths: set[str], *, hqq: bool) -> None:
    import torch
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    config = Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4 if scheme.bits == 4 else torch.int8,
        weight_granularity=PerGroup(scheme.group_size) if scheme.group_size else PerAxis(0),
        intx_choose_qparams_algorithm="hqq_scale_only" if hqq else "affine",
    )

    quantize_(module, config, filter_fn=lambda _layer, path: path in paths)


def _quantize_embedding(module: torch.nn.Module, path: str, scheme: Scheme, *, hqq: bool) -> None:
    import torch
    from executorch.examples.models.llama.source_transformation.quantize import EmbeddingQuantHandler

    holder = torch.nn.Module()
    holder.embedding = module.get_submodule(path)
    handler = EmbeddingQuantHandler(
        holder,
        bitwidth=scheme.bits,
        group_size=scheme.group_size,
        packed=scheme.bits == 4,
        quantize_with_hqq=hqq,
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
        handler.quantized_model()
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, holder.embedding)
