"""A base of the same structure with other weights: what is lowered in place of one that is too large to hold.

Lowering looks at weights only to tell tensors apart by their bytes. So those of a stand-in are random, no two alike, in
a few rows, and zeros that take no memory in the others; of a quantized layer only a few rows are quantized, and
repeated.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lora_core.layers import LayerInfo
from lora_core.models.base import BaseModel
from lora_core.models.outline import Outline
from lora_core.quant.policy import Scheme
from lora_core.tensors import LazyTensor
from lora_core_xnnpack.cache.forms import named_tensors
from lora_core_xnnpack.quant import is_half, put_layer, quantized_layer
from lora_core_xnnpack.streaming.base import StreamedBase

if TYPE_CHECKING:
    import torch

_ROWS = 16
_SCALE = 0.05


class StandInWeights:
    """The weights of stand-ins of one base, made when a model first has them, and held as long as this is.

    Models of different layers of the base have the same tensors for the layers that they have in common: nothing writes
    into one, so what a lowering makes of them, above all their hashes, serves the next.
    """

    def __init__(self) -> None:
        import torch

        from lora_core_xnnpack.lowering.known import KnownTensors

        self.known = KnownTensors()
        self._generator = torch.Generator().manual_seed(0)
        self._tensors: dict[str, torch.Tensor] = {}
        self._layers: dict[str, torch.nn.Module] = {}

    def tensor(self, source: LazyTensor) -> torch.Tensor:
        """Return what stands for the stored tensor `source`."""
        if source.name not in self._tensors:
            made = self._tensors[source.name] = _random(source.shape, self._generator)
            self.known.hold(made)
        return self._tensors[source.name]

    def layer(self, path: str, layer: LayerInfo, scheme: Scheme, scale_search: str) -> torch.nn.Module:
        """Return a quantized layer for that at `path` of the base: a new one each time, with the same tensors."""
        if path not in self._layers:
            made = self._layers[path] = _quantized(layer, scheme, scale_search, self._generator)
            for _, tensor in named_tensors(made):
                self.known.hold_parts(tensor)
        copied = copy.copy(self._layers[path])
        copied._parameters = dict(copied._parameters)
        return copied


def stand_in(
    base: StreamedBase,
    outline: Outline,
    weights: StandInWeights | None = None,
    origins: Mapping[str, str] | None = None,
) -> BaseModel:
    """Give `outline`, one like that of `base`, random weights, quantized as those of the base are; return its base.

    Tied parameters are tied here too. `weights` are those of all models that are cut out of one base, which calls a
    layer by the path that `origins` has for it.
    """
    weights = weights or StandInWeights()
    module = outline.base.module
    for path, (layer, scheme) in base.quantized.items():
        origin = path if origins is None else origins[path]
        _put(module, path, weights.layer(origin, layer, scheme, base.scale_search))
    alone = {path: source for path, source in outline.sources.items() if base.reads_alone(path)}
    given = {path: weights.tensor(source) for path, source in alone.items()}
    module.load_state_dict(given, strict=False, assign=True)
    module.requires_grad_(False)
    return outline.base


def _put(module: torch.nn.Module, path: str, layer: torch.nn.Module) -> None:
    """Put a quantized layer in place; a linear layer keeps its bias."""
    import torch

    from lora_core_xnnpack.lowering.half_layers import WeightOnlyLinear

    old = module.get_submodule(path)
    if isinstance(layer, WeightOnlyLinear):
        layer.bias = old.bias
    elif isinstance(old, torch.nn.Linear):
        old.weight = layer.weight
        return
    put_layer(module, path, layer)


def _quantized(layer: LayerInfo, scheme: Scheme, scale_search: str, generator: torch.Generator) -> Any:
    import torch

    rows, width = layer.out_features, layer.in_features
    if layer.kind == "embedding":
        rows, width = width, rows
    few = min(rows, _ROWS)
    made: Any = quantized_layer(_random((few, width), generator), layer.kind, scheme, scale_search=scale_search)
    if is_half(scheme):
        made.weight = torch.nn.Parameter(_repeated(made.weight, rows), requires_grad=False)
    elif layer.kind == "embedding":
        made.weight, made.scales = (_repeated(tensor, rows) for tensor in (made.weight, made.scales))
    else:
        made.weight = _repeated_parts(made.weight, rows)
    return made


def _repeated_parts(weight: Any, rows: int) -> torch.nn.Parameter:
    """Return torchao's quantized tensor with its rows repeated."""
    import torch

    parts = {name: _repeated(getattr(weight, name), rows) for name in weight.tensor_data_names}
    rest = {name: getattr(weight, name) for name in weight.tensor_attribute_names}
    return torch.nn.Parameter(type(weight)(**parts, **rest), requires_grad=False)


def _repeated(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    return tensor.repeat(-(-rows // len(tensor)), *(1 for _ in tensor.shape[1:]))[:rows].contiguous()


def _random(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return a tensor whose first rows are random, all of a vector; pages of the others are the system's page of zeros
    until they are written.
    """
    import numpy as np
    import torch

    values = torch.from_numpy(np.zeros(shape, np.float32))
    (values[:_ROWS] if len(shape) > 1 else values).normal_(0.0, _SCALE, generator=generator)
    return values
