# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""Experts in place of an MLP: ExecuTorch's own, called as the core's decoder calls its MLPs."""

from __future__ import annotations

from typing import Any

import torch
from executorch.examples.models.llama.llama_transformer import MOEFeedForward

from lora_core.models.executorch.attention import Options


class ExpertMlp(MOEFeedForward):  # type: ignore[misc]  # ExecuTorch is untyped here
    """ExecuTorch's experts for a sequence: of every token, weights of the chosen are gathered and applied."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)

    def forward(self, x: torch.Tensor, options: Options) -> torch.Tensor:  # noqa: ARG002 - as an MLP is called
        """Return what `x` (1, length, dim) becomes."""
        result: torch.Tensor = super().forward(x)
        return result.view(1, -1, self.dim)
