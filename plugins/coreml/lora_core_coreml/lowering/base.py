"""The base as CoreML takes it: the job's precision, norms that stay finite, wide layers split, layers quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import torch  # noqa: TID253 - this module is only imported to lower a model

from lora_core.backend import ExportJob
from lora_core.events import Emit, ignore
from lora_core.layers import LayerInfo
from lora_core.models.base import BaseModel
from lora_core.models.decoders import context_limits
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.models.outline import Outline
from lora_core.quant.policy import Assignment, Scheme
from lora_core.temporary import temporary_directory
from lora_core.tensors import LazyTensor
from lora_core_coreml import quant
from lora_core_coreml.lowering import breaks, inputs, norms, splitting
from lora_core_coreml.lowering.inputs import MethodShape
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.quiet import quiet


@attrs.frozen(kw_only=True)
class PreparedBase:
    """A base ready to export.

    `paths` are the layers' names in `module`, by name; `assignment` is what the policy decided for them. `static` says
    that it is ExecuTorch's static attention, with caches and metadata.
    """

    module: torch.nn.Module
    paths: Mapping[str, str]
    assignment: Assignment
    float16: bool
    shapes: tuple[MethodShape, ...]
    static: bool
    example_args: tuple[Any, ...] = ()
    metadata: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of weights and computation."""
        return torch.float16 if self.float16 else torch.float32

    def inputs(self, shape: MethodShape) -> tuple[Any, ...]:
        """Return example inputs of a method."""
        if self.static:
            return inputs.example_inputs(self.module, shape, self.dtype)
        return self.example_args


def prepare(job: ExportJob, emit: Emit = ignore) -> PreparedBase:
    """Load and prepare the base of `job`. Nothing here depends on adapters or slot plans."""
    asked = model_options(job)
    dtype = torch.float16 if job.options.float16 else torch.float32
    outline = job.model.outline(asked)
    if outline is None:
        return prepared(job, job.model.load(asked), quantize=True, emit=emit)
    return prepared(job, _filled(outline, dtype), quantize=True, sources=outline.sources, emit=emit)


def prepared(
    job: ExportJob,
    loaded: BaseModel,
    *,
    quantize: bool,
    sources: Mapping[str, LazyTensor] | None = None,
    emit: Emit = ignore,
) -> PreparedBase:
    """Prepare a loaded base, or one whose parameters are on the meta device, in place.

    Parameters that one of `sources` fills, and are used as they are, become one. Without `quantize` layers are left as
    they are; the policy's assignment says how they are to be quantized.
    """
    options: CoremlOptions = job.options
    context = options.context_len(*context_limits(job.model.summary))
    dtype = torch.float16 if options.float16 else torch.float32
    static = hasattr(loaded.module, "params") and hasattr(loaded.module, "rope")
    module, layers, paths = loaded.module, loaded.summary.layers, loaded.paths
    assignment = job.policy.assign(layers)
    with quiet():
        if options.float16:
            norms.replace_norms(module)
        module = module.to(dtype).eval()
        _tie(module, sources or {})
        if static:
            _decompose_attention(module)
        if options.linear_split:
            divisible = [paths[layer.name] for layer in layers if _divisible(layer, assignment.schemes)]
            splitting.split_linears(module, divisible, options.split_size, options.max_splits)
        if quantize:
            quant.apply(module, assignment.schemes, layers, paths)
            with (
                temporary_directory() as work,
                options.how_to_round.layers(job.model, assignment, work, emit) as rounded,
            ):
                if rounded is not None:
                    quant.put_rounded(module, rounded, paths)
        if options.graph_breaks:
            paths = breaks.add(module, paths)
    return PreparedBase(
        module=module,
        paths=paths,
        assignment=assignment,
        float16=options.float16,
        shapes=_shapes(options, context, static),
        static=static,
        example_args=_example_args(loaded, dtype),
        metadata=loaded.metadata,
    )


def model_options(job: ExportJob) -> ExecutorchOptions:
    """Return what is asked of the model source."""
    options: CoremlOptions = job.options
    return options.of_source(*context_limits(job.model.summary))


def _filled(outline: Outline, dtype: torch.dtype) -> BaseModel:
    """Load a base tensor by tensor, matrices in `dtype` at once, so that it is never held in two precisions.

    Vectors stay float32, since a norm may add one to its own.
    """
    values: dict[str, torch.Tensor] = {}
    for source in outline.sources.values():
        if source.name not in values:
            tensor = torch.from_numpy(source.read())
            values[source.name] = tensor.to(dtype) if tensor.dim() > 1 else tensor
    return outline.fill(values)


def _tie(module: torch.nn.Module, sources: Mapping[str, LazyTensor]) -> None:
    """Let matrices of `module` that one of `sources` fills be one parameter, which is lowered once."""
    first: dict[str, torch.nn.Parameter] = {}
    for path, source in sources.items():
        owner, _, name = path.rpartition(".")
        parent = module.get_submodule(owner)
        if len(source.shape) > 1:
            setattr(parent, name, first.setdefault(source.name, getattr(parent, name)))


def _shapes(options: CoremlOptions, context: int, static: bool) -> tuple[MethodShape, ...]:
    return inputs.shapes(
        multifunction=options.multifunction and static,
        input_len=options.input_len,
        max_context_len=context,
    )


def _divisible(layer: LayerInfo, schemes: Mapping[str, Scheme | None]) -> bool:
    """Say whether a layer may be split: not where its weight is also the embedding's, stored once for both."""
    if layer.kind != "linear":
        return False
    return layer.tied_to is None or schemes.get(layer.name) != schemes.get(layer.tied_to)


def _decompose_attention(module: torch.nn.Module) -> None:
    """Let attention be four-dimensional matmuls, as CoreML's runtime wants it (export_static_llm_coreml.py)."""
    from executorch.examples.models.llama.static_attention import StaticAttention

    for child in module.modules():
        if isinstance(child, StaticAttention):
            child.decompose_sdpa_in_mha = True


def _example_args(loaded: BaseModel, dtype: torch.dtype) -> tuple[Any, ...]:
    from torch.utils._pytree import tree_map

    def convert(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    converted: tuple[Any, ...] = tree_map(convert, loaded.example_args)
    return converted
