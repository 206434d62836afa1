# ruff: noqa: TID253  this module is imported only to build a model, with torch loaded
"""What each block of Gemma 4 gets of each token for itself: one table for all of them, and a gate in each.

ExecuTorch 1.5.1's own definition (`examples/models/gemma4/text_decoder`) is not called: it gives the logits of the last
token alone, computes its rotary tables in every layer and call, has GELU's approximation that XNNPACK gets as the exact
one, and knows neither static attention nor keys that are values.
"""

from __future__ import annotations

import torch
from executorch.examples.models.llama.norm import RMSNorm

from lora_core.models.architecture import Architecture, LayerInputs
from lora_core.models.executorch.attention import Options, activated


class LayerInputTable(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """The inputs of all blocks: rows of a table, and a projection of the embeddings, normalized block by block."""

    def __init__(self, architecture: Architecture, inputs: LayerInputs) -> None:
        super().__init__()
        self.width, self.whole = inputs.width, architecture.layers * inputs.width
        self.embeddings = torch.nn.Embedding(inputs.rows, self.whole)
        self.projection = torch.nn.Linear(architecture.dim, self.whole, bias=False)
        self.norm = RMSNorm(inputs.width, eps=architecture.norm_eps)

    def forward(self, tokens: torch.Tensor, embedded: torch.Tensor, options: Options) -> torch.Tensor:
        """Return the inputs (1, length, blocks * width) of `tokens` (1, length), `embedded` as the stream begins."""
        projected = self.projection(embedded) * options["projection_scale"]
        apart = self.norm(projected.view(1, -1, self.whole // self.width, self.width))
        rows = self.embeddings(tokens) * options["input_scale"]
        return (apart.view(1, -1, self.whole) + rows) * options["input_share"]

    def part(self, inputs: torch.Tensor, index: int) -> torch.Tensor:
        """Return the part (1, length, width) of `inputs` that is of the block `index`."""
        return inputs[..., index * self.width : (index + 1) * self.width]


class LayerInput(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A block's own input, gated by the stream and added to it."""

    def __init__(self, architecture: Architecture, inputs: LayerInputs) -> None:
        super().__init__()
        self.activation = architecture.activation
        self.gate = torch.nn.Linear(architecture.dim, inputs.width, bias=False)
        self.projection = torch.nn.Linear(inputs.width, architecture.dim, bias=False)
        self.norm = RMSNorm(architecture.dim, eps=architecture.norm_eps)

    def forward(self, x: torch.Tensor, options: Options) -> torch.Tensor:
        """Return what is added to the stream `x` (1, length, dim); the options have `layer_input`."""
        gated = activated(self.activation, self.gate(x), options) * options["layer_input"]
        result: torch.Tensor = self.norm(self.projection(gated))
        return result
