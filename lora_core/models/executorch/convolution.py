# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""The short convolution of Liquid's models: a gated sum of a token and those just before it."""

from __future__ import annotations

import torch

from lora_core.models.architecture import Architecture
from lora_core.models.executorch.attention import Options


class ShortConvolution(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A causal convolution of each channel over `taps` tokens, gated before and after.

    The tokens before a call are its state, which a call at position 0 begins anew. A tap is a vector of its own, so
    that a call is products and sums along the sequence, without a transposed copy of it.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, bias = architecture.dim, architecture.conv_bias
        self.dim, self.count = dim, architecture.taps
        self.in_proj = torch.nn.Linear(dim, 3 * dim, bias=bias)
        self.out_proj = torch.nn.Linear(dim, dim, bias=bias)
        self.taps = torch.nn.ParameterList(torch.nn.Parameter(torch.zeros(dim)) for _ in range(self.count))
        self.bias = torch.nn.Parameter(torch.zeros(dim)) if bias else None
        self.register_buffer("state", torch.zeros(1, self.count - 1, dim, device="cpu"))

    def forward(self, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, None]:
        """Return what `x` (1, length, dim) becomes, and no news for the options; `position` is that of its first."""
        three, length = self.in_proj(x), x.shape[1]
        before, after, value = (three[..., part * self.dim : (part + 1) * self.dim] for part in range(3))
        begun = (options["position"] > 0).to(x.dtype).view(1, 1, 1)
        tokens = torch.cat([self.state * begun, before * value], dim=1)
        self.state.copy_(tokens[:, -(self.count - 1) :])
        mixed = tokens.narrow(1, 0, length) * self.taps[0]
        for place in range(1, self.count):
            mixed = mixed + tokens.narrow(1, place, length) * self.taps[place]
        if self.bias is not None:
            mixed = mixed + self.bias
        return self.out_proj(after * mixed), None
