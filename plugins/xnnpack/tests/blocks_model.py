"""A small model of blocks in a list, as a streamed base: what is stamped, without the cost of a decoder."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import numpy as np
import torch
from lora_core_xnnpack.streaming.base import StreamedBase
from torch import nn

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.models.base import BaseModel
from lora_core.models.outline import Outline
from lora_core.quant.policy import QuantPolicy

WIDTH = 32


class Block(nn.Module):
    """A residual layer with a state, of which a portable kernel computes a part."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, inner, bias=False), nn.Linear(inner, WIDTH, bias=False)
        self.gain = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("state", torch.zeros(1, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * self.gain + torch.cumsum(x, dim=1)
        self.state.copy_(x)
        return x + self.down(nn.functional.silu(self.up(x)))


class Chain(nn.Module):
    """Blocks one after another."""

    def __init__(self, inner: Sequence[int]) -> None:
        super().__init__()
        self.table = nn.Embedding(16, WIDTH)
        self.blocks = nn.ModuleList(Block(size) for size in inner)
        self.head = nn.Linear(WIDTH, 16, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Dense(Chain):
    """Blocks that each see what all blocks before it gave: no layer is like the one before."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = [self.table(tokens)]
        for block in self.blocks:
            seen.append(block(torch.cat(seen, dim=0).cumsum(dim=0)[-1:]))
        return self.head(seen[-1])


@attrs.frozen(kw_only=True)
class Size:
    """The size of a parameter that is stored nowhere."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"
    path: Path = Path()

    def read(self) -> np.ndarray:
        raise AssertionError("nothing reads weights to lower")


def streamed(inner: Sequence[int], policy: QuantPolicy, kind: Callable[[Sequence[int]], Chain] = Chain) -> StreamedBase:
    """Return a model with a block of each of the `inner` widths as a base without weights."""
    module = kind(inner).eval().requires_grad_(False)
    sources = {path: Size(name=path, shape=tuple(each.shape)) for path, each in module.named_parameters()}
    for path in sources:
        owner, _, name = path.rpartition(".")
        parameter = getattr(module.get_submodule(owner), name)
        setattr(module.get_submodule(owner), name, nn.Parameter(parameter.to("meta"), requires_grad=False))
    layers = tuple(_layer(f"model.{path}", part) for path, part in module.named_modules() if hasattr(part, "weight"))
    base = BaseModel(
        summary=ModelSummary(name="blocks", family="blocks", layers=layers, module_names=()),
        module=module,
        paths={layer.name: layer.name.removeprefix("model.") for layer in layers},
        example_args=(torch.tensor([3]),),
        example_kwargs={},
        dynamic_shapes=None,
        metadata={"get_n_layers": len(inner)},
    )
    return StreamedBase(
        outline=Outline(base=base, sources=sources), assignment=policy.assign(layers), scale_search="affine"
    )


def copied(outline: Outline) -> Outline:
    """Return a outline whose module can be given weights."""
    return Outline(base=attrs.evolve(outline.base, module=copy.deepcopy(outline.base.module)), sources=outline.sources)


def plan(base: StreamedBase, rank: Callable[[int, str], int]) -> SlotPlan:
    """Return the plan with a slot of `rank` (0: none) on each linear layer of each block, by its number and name."""
    slots = []
    for layer in base.model.summary.layers:
        _, place, *inner = layer.name.split(".")
        ranked = rank(int(inner[0]), inner[1]) if place == "blocks" else 0
        if ranked:
            slots.append(
                Slot(module=layer.name, in_features=layer.in_features, out_features=layer.out_features, rank=ranked)
            )
    return SlotPlan(slots=tuple(slots))


def _layer(name: str, part: nn.Module) -> LayerInfo:
    rows, columns = part.weight.shape
    if isinstance(part, nn.Embedding):
        return LayerInfo(name=name, kind="embedding", in_features=rows, out_features=columns)
    assert math.prod(part.weight.shape)
    return LayerInfo(name=name, kind="linear", in_features=columns, out_features=rows, is_output=name.endswith("head"))
