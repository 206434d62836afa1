"""A caller's own `nn.Module` as a base model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
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

    Its layers are all `nn.Linear` and `nn.Embedding` modules, named by their paths. Adapters were trained on the module
    that a wrapper holds: `prefix` is the beginning of paths that their names lack (`inner` for a wrapper that keeps it
    as `self.inner`), or `rename` gives for each path the name that adapters use. An embedding whose class computes more
    than `nn.Embedding` (it scales, or counts positions) is no layer: it stays as it is. A linear layer whose weight is
    an embedding's is its output head. `output` names the output head otherwise, as adapters do (None: there is none
    that adapters leave out). The module must be float32 and stays as it is: what is quantized, wrapped and lowered is a
    copy of its structure that shares its weights.

    A module that takes tokens can be run, verified and measured if it is known how many there are: `vocab_size` (None:
    the output head says it), how many fit, `context_len`, and which of them end a text, `eos_ids`.
    """

    module: torch.nn.Module
    example_args: tuple[Any, ...]
    example_kwargs: Mapping[str, Any] = attrs.field(factory=dict)
    dynamic_shapes: Any = None
    metadata: Mapping[str, Any] = attrs.field(factory=dict)
    name: str = "module"
    output: str | None = None
    prefix: str = ""
    rename: Callable[[str], str] | None = None
    vocab_size: int | None = None
    context_len: int | None = None
    eos_ids: tuple[int, ...] = ()
    tokenizer_files: TokenizerFiles | None = None

    def __attrs_post_init__(self) -> None:
        names = [self._name(path) for path, _ in self.module.named_modules()]
        repeated = sorted({name for name in names if name and names.count(name) > 1})
        if repeated:
            raise ModelError(f"Several modules are called {', '.join(repeated)}.", remedy="Correct `rename`.")
        if self.prefix and not any(path == self.prefix.rstrip(".") for path, _ in self.module.named_modules()):
            has = ", ".join(name for name, _ in self.module.named_children()) or "none"
            raise ModelError(f"The module has no module {self.prefix!r}.", remedy=f"Its own modules are: {has}.")

    @property
    def notes(self) -> tuple[str, ...]:
        """Name embeddings that stay as they are."""
        own = [
            f"{self._name(path)} ({type(each).__name__})" for path, each in self._embeddings() if not _is_table(each)
        ]
        if not own:
            return ()
        return (
            f"More than a table is computed by {', '.join(own)}, so no policy quantizes it and no adapter fits it.",
        )

    @property
    def summary(self) -> ModelSummary:
        """Facts about the module: its layers and module names."""
        layers = tuple(layer for _, layer in self._layers())
        heads = [layer.out_features for layer in layers if layer.is_output]
        return ModelSummary(
            name=self.name,
            family="module",
            layers=layers,
            module_names=tuple(name for path, _ in self.module.named_modules() if (name := self._name(path))),
            identities=(self.name,),
            context_len=self.context_len,
            vocab_size=self.vocab_size if self.vocab_size is not None or not heads else heads[0],
            eos_ids=self.eos_ids,
        )

    @property
    def tokenizer(self) -> TokenizerFiles | None:
        """The tokenizer files that the caller gave."""
        return self.tokenizer_files

    def tensors(self) -> Mapping[str, LazyTensor]:
        """Return the module's parameters by name, each once: a tied layer's weight is that of the embedding."""
        found = {}
        for path, parameter in self.module.named_parameters():
            module, _, last = path.rpartition(".")
            name = f"{self._name(module)}.{last}".lstrip(".")
            found[name] = ModuleTensor(name=name, parameter=parameter)
        for path, layer in self._layers():
            if layer.tied_to is None:  # it may share its weight with what is no layer
                name, weight = f"{layer.name}.weight", self.module.get_submodule(path).weight
                found.setdefault(name, ModuleTensor(name=name, parameter=weight))
        return found

    def load(self, options: ModelOptions) -> BaseModel:  # noqa: ARG002 - the caller's module is as it is
        """Return the module in eval mode and without gradients; `options` cannot change it.

        Raises `ModelError` if it is not float32.
        """
        _check_dtypes(self.module)
        return BaseModel(
            summary=self.summary,
            module=_shared_copy(self.module).eval(),
            paths={layer.name: path for path, layer in self._layers()},
            example_args=self.example_args,
            example_kwargs=dict(self.example_kwargs),
            dynamic_shapes=self.dynamic_shapes,
            metadata=dict(self.metadata),
        )

    def _name(self, path: str) -> str:
        """Return what adapters call the module at `path`; nothing for the module itself and what holds it."""
        if self.rename is not None and path:
            path = self.rename(path)
        prefix = self.prefix.rstrip(".")
        if prefix and (path == prefix or path.startswith(f"{prefix}.")):
            return path[len(prefix) + 1 :]
        return path

    def _embeddings(self) -> Iterator[tuple[str, Any]]:
        import torch  # the caller's module has imported it already

        return ((path, each) for path, each in self.module.named_modules() if isinstance(each, torch.nn.Embedding))

    def _layers(self) -> Iterator[tuple[str, LayerInfo]]:
        """Yield every layer with its path."""
        import torch  # the caller's module has imported it already

        embeddings = {id(each.weight): (self._name(path), _is_table(each)) for path, each in self._embeddings()}
        for path, layer in self.module.named_modules():
            name = self._name(path)
            if _is_table(layer):
                embedding = LayerInfo(
                    name=name,
                    kind="embedding",
                    in_features=layer.num_embeddings,
                    out_features=layer.embedding_dim,
                )
                yield path, embedding
            # nn.MultiheadAttention reads the weight of its out_proj and never calls it: nothing can be attached there.
            elif isinstance(layer, torch.nn.Linear) and not isinstance(
                layer, torch.nn.modules.linear.NonDynamicallyQuantizableLinear
            ):
                tied_to, is_layer = embeddings.get(id(layer.weight), (None, False))
                linear = LayerInfo(
                    name=name,
                    kind="linear",
                    in_features=layer.in_features,
                    out_features=layer.out_features,
                    has_bias=layer.bias is not None,
                    is_output=tied_to is not None or name == self.output,
                    tied_to=tied_to if is_layer else None,
                )
                yield path, linear


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


def _is_table(module: Any) -> bool:
    """Say whether `module` looks rows up, and does nothing more: what can be replaced by another that does."""
    import torch  # the caller's module has imported it already

    return isinstance(module, torch.nn.Embedding) and type(module).forward is torch.nn.Embedding.forward


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
