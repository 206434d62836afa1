"""A caller's own `nn.Module` as a base model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import ModelError
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.models.base import BaseModel, ModelHandle, ModelOptions, TokenizerFiles
from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch


@attrs.frozen(kw_only=True, slots=False)
class ModuleModel(ModelHandle):
    """Any `nn.Module` with what `torch.export.export` needs to trace it.

    Its layers are all `nn.Linear` and `nn.Embedding` modules, named by their paths. A linear layer whose weight is an
    embedding's is its output head. `output` names the output head otherwise (None: there is none that adapters leave
    out). The module must be float32 and stays as it is: what is quantized, wrapped and lowered is a copy of its
    structure that shares its weights.
    """

    module: torch.nn.Module
    example_args: tuple[Any, ...]
    example_kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    dynamic_shapes: Any = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    name: str = "module"
    output: str | None = None
    tokenizer_files: TokenizerFiles | None = None

    @property
    def summary(self) -> ModelSummary:
        """Facts about the module: its layers and module names."""
        return ModelSummary(
            name=self.name,
            family="module",
            layers=tuple(self._layers()),
            module_names=tuple(name for name, _ in self.module.named_modules() if name),
            identities=(self.name,),
        )

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        """The tokenizer files that the caller gave."""
        return self.tokenizer_files

    def tensors(self) -> Mapping[str, LazyTensor]:
        """Return the module's parameters by name, each once: a tied layer's weight is that of the embedding."""
        return {name: ModuleTensor(name=name, parameter=each) for name, each in self.module.named_parameters()}

    def load(self, options: ModelOptions) -> BaseModel:  # noqa: ARG002 - the caller's module is as it is
        """Return the module in eval mode and without gradients; `options` cannot change it.

        Raises `ModelError` if it is not float32.
        """
        _check_dtypes(self.module)
        return BaseModel(
            summary=self.summary,
            module=_shared_copy(self.module).eval(),
            paths={layer.name: layer.name for layer in self._layers()},
            example_args=self.example_args,
            example_kwargs=dict(self.example_kwargs),
            dynamic_shapes=self.dynamic_shapes,
            metadata=dict(self.metadata),
        )

    def _layers(self) -> Iterator[LayerInfo]:
        import torch  # the caller's module has imported it already

        embeddings: dict[int, str] = {}
        for name, layer in self.module.named_modules():
            if isinstance(layer, torch.nn.Embedding):
                embeddings[id(layer.weight)] = name
        for name, layer in self.module.named_modules():
            if isinstance(layer, torch.nn.Embedding):
                yield LayerInfo(
                    name=name,
                    kind="embedding",
                    in_features=layer.num_embeddings,
                    out_features=layer.embedding_dim,
                )
            # nn.MultiheadAttention reads the weight of its out_proj and never calls it: nothing can be attached there.
            elif isinstance(layer, torch.nn.Linear) and not isinstance(
                layer, torch.nn.modules.linear.NonDynamicallyQuantizableLinear
            ):
                tied_to = embeddings.get(id(layer.weight))
                yield LayerInfo(
                    name=name,
                    kind="linear",
                    in_features=layer.in_features,
                    out_features=layer.out_features,
                    has_bias=layer.bias is not None,
                    is_output=tied_to is not None or name == self.output,
                    tied_to=tied_to,
                )


@attrs.frozen(kw_only=True)
class ModuleTensor:
    """A parameter of a caller's module (a `LazyTensor`); it is in memory already, in no file."""

    name: str
    parameter: Any
    dtype: str = "F32"
    path: Path = Path()

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        return tuple(self.parameter.shape)

    def read(self) -> npt.NDArray[np.float32]:
        """Return its values; the memory is the parameter's own where it is float32 and contiguous."""
        values: npt.NDArray[np.float32] = self.parameter.detach().float().contiguous().numpy()
        return values


def _shared_copy(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of the structure whose parameters share the storage of the original's; buffers are copied."""
    import torch  # the caller's module has imported it already

    shared: dict[int, Any] = {
        id(parameter): torch.nn.Parameter(parameter.detach(), requires_grad=False) for parameter in module.parameters()
    }
    return copy.deepcopy(module, shared)


def _check_dtypes(module: torch.nn.Module) -> None:
    import torch  # the caller's module has imported it already

    other = [
        f"{name} ({str(parameter.dtype).removeprefix('torch.')})"
        for name, parameter in module.named_parameters()
        if parameter.is_floating_point() and parameter.dtype != torch.float32
    ]
    if other:
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise ModelError(
            f"A module is exported in float32; these parameters are not: {', '.join(other[:3])}{more}.",
            remedy="Call .float() on it first.",
        )
