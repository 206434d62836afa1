"""A caller's own `nn.Module` as a base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.models.base import BaseModel, LayerInfo, ModelHandle, ModelOptions, ModelSummary, TokenizerFiles

if TYPE_CHECKING:
    import torch


@attrs.frozen(kw_only=True, slots=False)
class ModuleModel(ModelHandle):
    """Any `nn.Module` with what `torch.export.export` needs to trace it.

    Its layers are all `nn.Linear` and `nn.Embedding` modules, named by their paths. A linear layer whose weight is an
    embedding's is its output head. `output` names the output head otherwise (None: there is none that adapters leave
    out). The module is exported as it is: it must be float32, and is put in eval mode when it is loaded.
    """

    module: torch.nn.Module
    example_args: tuple[Any, ...]
    example_kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    dynamic_shapes: Any = None
    constant_methods: Mapping[str, Any] = attrs.field(factory=dict)
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

    def load(self, options: ModelOptions) -> BaseModel:  # noqa: ARG002 - the caller's module is as it is
        """Return the module itself, in eval mode and without gradients; `options` cannot change it."""
        return BaseModel(
            summary=self.summary,
            module=self.module.requires_grad_(False).eval(),
            example_args=self.example_args,
            example_kwargs=dict(self.example_kwargs),
            dynamic_shapes=self.dynamic_shapes,
            constant_methods=dict(self.constant_methods),
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
                    path=name,
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
                    path=name,
                    kind="linear",
                    in_features=layer.in_features,
                    out_features=layer.out_features,
                    has_bias=layer.bias is not None,
                    is_output=tied_to is not None or name == self.output,
                    tied_to=tied_to,
                )
