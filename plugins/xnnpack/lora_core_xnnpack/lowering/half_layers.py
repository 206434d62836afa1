# ruff: noqa: TID253  this module is imported only while exporting, with torch already loaded
"""Layers whose weights alone are small, float16 or int8, in a module that computes in float32 around them.

XNNPACK's linear layers take float16 weights with float16 inputs (`float_conversions.py` has the conversions in the
delegate). Norms, rotary positions, sums and logits stay float32: the squares in a norm of SmolLM2 overflow in float16.
"""

from __future__ import annotations

import torch
from torch.nn import functional


class WeightOnlyLinear(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A linear layer with small weights for float32 inputs; a bias is float32 and added to what it gives.

    ExecuTorch 1.5.1 has no bias beside weights that are quantized alone (`QuantParams.from_bias`).
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Take the weight (out_features, in_features), which may be one of torchao's, and the bias (out_features,)."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.register_parameter("bias", None if bias is None else torch.nn.Parameter(bias, requires_grad=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what `x` (..., in_features), float32, becomes."""
        out = self._multiplied(x)
        return out if self.bias is None else out + self.bias

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.weight)


class HalfLinear(WeightOnlyLinear):
    """One with float16 weights, to which a weight that it is given is rounded."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__(to_half(weight), bias)

    def _multiplied(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x.to(torch.float16), self.weight).to(torch.float32)


class HalfEmbedding(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """An embedding whose rows are float16 and are given as float32."""

    def __init__(self, weight: torch.Tensor) -> None:
        """Take the table (rows, width), which is rounded to float16."""
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.weight = torch.nn.Parameter(to_half(weight), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the rows of `tokens`, float32."""
        rows: torch.Tensor = functional.embedding(tokens, self.weight).to(torch.float32)
        return rows


def to_half(weight: torch.Tensor) -> torch.Tensor:
    """Return `weight` rounded to the nearest float16 numbers."""
    return weight.detach().to(torch.float16)
