"""Linear layers split into several smaller ones, which the Neural Engine runs faster."""

from __future__ import annotations

from collections.abc import Iterable

import torch  # noqa: TID253 - this module is only imported to lower a model


class SplitLinear(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A linear layer as `parts` layers, each with an equal share of the output features."""

    def __init__(self, linear: torch.nn.Linear, parts: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        size = linear.out_features // parts
        weights = linear.weight.detach().split(size)
        biases = [None] * parts if linear.bias is None else linear.bias.detach().split(size)
        self.parts = torch.nn.ModuleList(_linear(*pair) for pair in zip(weights, biases, strict=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the whole layer returns."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


def split_count(out_features: int, target: int, most: int) -> int:
    """Return into how many equal parts of about `target` outputs a layer is split, at most `most`."""
    wanted = min(max(out_features // target, 1), most)
    return next(count for count in range(wanted, 0, -1) if out_features % count == 0)


def split_linears(module: torch.nn.Module, paths: Iterable[str], target: int, most: int) -> None:
    """Split the linear layers of `module` at `paths`."""
    for path in paths:
        linear = module.get_submodule(path)
        if not isinstance(linear, torch.nn.Linear):
            continue
        parts = split_count(linear.out_features, target, most)
        if parts > 1:
            parent, _, attribute = path.rpartition(".")
            setattr(module.get_submodule(parent), attribute, SplitLinear(linear, parts))


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> torch.nn.Linear:
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = torch.nn.Parameter(bias, requires_grad=False)
    return linear
