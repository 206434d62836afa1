# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""Layers that keep a state by the gated delta rule: ExecuTorch's own, called as the core's decoder calls its blocks."""

from __future__ import annotations

import torch
from executorch.examples.models.llama.attention import AttentionGatedDeltaNet

from lora_core.models.executorch.attention import Options


class DeltaAttention(AttentionGatedDeltaNet):  # type: ignore[misc]  # ExecuTorch is untyped here
    """ExecuTorch's Gated DeltaNet, which begins its states anew at position 0."""

    def forward(self, x: torch.Tensor, options: Options) -> tuple[torch.Tensor, None]:
        """Return what `x` (1, length, dim) becomes, and no news for the options; `position` is that of its first."""
        output, _ = super().forward(x, None, None, input_pos=options["position"])
        return output, None
