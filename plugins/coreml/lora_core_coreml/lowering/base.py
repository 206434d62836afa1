"""The base as CoreML takes it: the job's precision, norms that stay finite, wide layers split, layers quantized."""

from __future__ import annotations

import copy
from typing import Any

import attrs
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.backend import ExportJob
from lora_core.layers import LayerInfo
from lora_core.models.base import BaseModel, ModelOptions
from lora_core.quant.policy import Scheme
from lora_core_coreml import quant
from lora_core_coreml.lowering import breaks, inputs, norms, splitting
from lora_core_coreml.lowering.inputs import MethodShape
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quiet import quiet


@attrs.frozen(kw_only=True)
class PreparedBase:
    """A base ready to export. `static` says that it is ExecuTorch's static attention, with caches and metadata."""

    module: Any
    layers: tuple[LayerInfo, ...]
    dtype: Any
    shapes: tuple[MethodShape, ...]
    static: bool
    example_args: tuple[Any, ...] = ()
    constant_methods: dict[str, Any] = attrs.field(factory=dict)

    def inputs(self, shape: MethodShape) -> tuple[Any, ...]:
        """Return example inputs of a method."""
        if self.static:
            return inputs.example_inputs(self.module, shape, self.dtype)
        return self.example_args


def prepare(job: ExportJob) -> PreparedBase:
    """Load and prepare the base of `job`. Nothing here depends on adapters or slot plans."""
    options: CoremlOptions = job.options
    context = options.context_len(job.model.summary.context_len)
    loaded = job.model.load(model_options(options, context))
    dtype = torch.float16 if options.float16 else torch.float32
    static = hasattr(loaded.module, "params") and hasattr(loaded.module, "rope")
    # A caller's own module stays as it is; a module that was loaded for this job is changed in place.
    module = loaded.module if static else copy.deepcopy(loaded.module)
    layers = loaded.summary.layers
    schemes = job.policy.assign(layers).schemes
    with quiet():
        if options.float16:
            norms.replace_norms(module)
        module = module.to(dtype).eval()
        if static:
            _decompose_attention(module)
        if options.linear_split:
            paths = [layer.path for layer in layers if _divisible(layer, schemes)]
            splitting.split_linears(module, paths, options.split_size, options.max_splits)
        quant.apply(module, schemes, layers)
        if options.graph_breaks:
            layers = breaks.add(module, layers)
    return PreparedBase(
        module=module,
        layers=layers,
        dtype=dtype,
        shapes=_shapes(options, context, static),
        static=static,
        example_args=_example_args(loaded, dtype),
        constant_methods=loaded.constant_methods,
    )


def model_options(options: CoremlOptions, context: int) -> ModelOptions:
    """Return what is asked of the model source: logits of all positions unless decode and prefill are separate."""
    return ModelOptions(
        max_context_len=context,
        max_seq_len=options.input_len,
        attention="static",
        full_logits=not options.multifunction,
        dynamic_seq_len=False,
    )


def _shapes(options: CoremlOptions, context: int, static: bool) -> tuple[MethodShape, ...]:
    return inputs.shapes(
        multifunction=options.multifunction and static,
        input_len=options.input_len,
        max_context_len=context,
    )


def _divisible(layer: LayerInfo, schemes: dict[str, Scheme | None]) -> bool:
    """Say whether a layer may be split: not where its weight is also the embedding's, stored once for both."""
    if layer.kind != "linear":
        return False
    return layer.tied_to is None or schemes.get(layer.name) != schemes.get(layer.tied_to)


def _decompose_attention(module: Any) -> None:
    """Let attention be four-dimensional matmuls, as CoreML's runtime wants it (export_static_llm_coreml.py)."""
    from executorch.examples.models.llama.static_attention import StaticAttention

    for child in module.modules():
        if isinstance(child, StaticAttention):
            child.decompose_sdpa_in_mha = True


def _example_args(loaded: BaseModel, dtype: Any) -> tuple[Any, ...]:
    from torch.utils._pytree import tree_map

    def convert(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    converted: tuple[Any, ...] = tree_map(convert, loaded.example_args)
    return converted


def is_float16(dtype: Any) -> bool:
    """Say whether `dtype` is torch's float16."""
    return bool(dtype == torch.float16)
