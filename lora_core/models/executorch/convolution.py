# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""The short convolution of Liquid's models: a gated sum of a token and those just before it."""

from __future__ import annotations

import torch

from lora_core.models.architecture import Architecture
from lora_core.models.executorch.attention import Options


class GatedConvolution(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A causal convolution of each channel over `taps` tokens, gated before and after.

    A tap is a vector of its own, so that a call is products and sums along the sequence, without a transposed copy of
    it.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, bias = architecture.dim, architecture.conv_bias
        self.dim, self.count = dim, architecture.taps
        self.in_proj = torch.nn.Linear(dim, 3 * dim, bias=bias)
        self.out_proj = torch.nn.Linear(dim, dim, bias=bias)
        self.taps = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(dim)) for _ in range(self.count))
        self.bias = torch.nn.Parameter(torch.zeros(dim)) if bias else None

    def gated(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is convolved of `x` (1, length, dim), and what gates the result."""
        three = self.in_proj(x)
        before, after, value = (three[..., part * self.dim : (part + 1) * self.dim] for part in range(3))
        return before * value, after

    def mixed(self, tokens: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Return what the block adds to the stream; `tokens` has the `taps - 1` before a call in front of its own."""
        length = after.shape[1]
        mixed = tokens.narrow(1, 0, length) * self.taps[0]
        for place in range(1, self.count):
            mixed = mixed + tokens.narrow(1, place, length) * self.taps[place]
        if self.bias is not None:
            mixed = mixed + self.bias
        result: torch.Tensor = self.out_proj(after * mixed)
        return result


class ShortConvolution(GatedConvolution):
    """One that keeps the tokens before a call as its state, which a call at position 0 begins anew."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture)
        self.register_buffer("state", torch.zeros(1, self.count - 1, self.dim, device="cpu"))

    def forward(self, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, None]:
        """Return what `x` (1, length, dim) becomes, and no news for the options; `position` is that of its first."""
        fed, after = self.gated(x)
        begun = (options["position"] > 0).to(x.dtype).view(1, 1, 1)
        tokens = torch.cat([self.state * begun, fed], dim=1)
        self.state.copy_(tokens[:, -(self.count - 1) :])
        return self.mixed(tokens, after), None


class FixedConvolution(GatedConvolution):
    """One whose state is an input, for static attention: `in_conv_state` of the options has it under `key`, (1, taps -
    1, dim), and `out_conv_state` gets what a call adds to it, (1, length, dim).

    Who feeds it keeps the last `taps - 1` tokens that were no padding, and zeros before the first.
    """

    def __init__(self, architecture: Architecture, key: str) -> None:
        super().__init__(architecture)
        self.key = key

    def forward(self, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, Options]:
        """Return what `x` (1, length, dim) becomes, and the state's news."""
        fed, after = self.gated(x)
        tokens = torch.cat([options["in_conv_state"][self.key], fed], dim=1)
        return self.mixed(tokens, after), {"out_conv_state": {**options.get("out_conv_state", {}), self.key: fed}}
