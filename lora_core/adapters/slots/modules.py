"""Layers of the base with one slot's parts acting on them, as torch modules: what `SlotKind.wrap` makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch  # noqa: TID253 - the module defines an nn.Module; nothing imports it before weights are loaded


class SlotModule(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A layer of the base with one slot's parts acting on it. `base` is the wrapped layer, untouched."""

    base: torch.nn.Module
    PARTS: Mapping[str, str] = {}
    """The parts of the slot's kind, each with the name of the parameter that holds it."""

    @property
    def weight(self) -> Any:
        """The weight of the base layer."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        """The bias of the base layer, or None."""
        return self.base.bias

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Hook of nn.Module.load_state_dict, which calls it positionally. `linear` is what ExecuTorch's LoRALinear
        # (examples/models/llama/lora.py, 1.5.1) calls its base.
        for name in ("weight", "bias"):
            for other in (prefix + name, f"{prefix}linear.{name}"):
                if other in state_dict and f"{prefix}base.{name}" not in state_dict:
                    state_dict[f"{prefix}base.{name}"] = state_dict.pop(other)
        super()._load_from_state_dict(state_dict, prefix, *args)


class LoraLinear(SlotModule):
    """`out = base(x) + lora_b(lora_a(x))`: a linear layer with a low-rank update beside it.

    `base` is the wrapped layer, untouched (it may be quantized). `lora_a` is (rank, in_features), `lora_b`
    (out_features, rank) and already scaled: the graph holds no scalar that depends on the adapter. `weight` and
    `bias` are the base's, and state dicts that name them without `base.` still load. So do those of ExecuTorch's
    `LoRALinear`; its `lora_b` is not scaled: multiply it by alpha / rank first.
    """

    PARTS: Mapping[str, str] = {"a": "lora_a.weight", "b": "lora_b.weight"}

    def __init__(self, base: torch.nn.Module, a: torch.Tensor, b: torch.Tensor) -> None:
        """Wrap `base` with the matrices `a` and `b`."""
        super().__init__()
        self.base = base
        self.lora_a = linear(a)
        self.lora_b = linear(b)
        self.train(base.training)

    @property
    def in_features(self) -> int:
        """The width of the input."""
        return int(self.lora_a.in_features)

    @property
    def out_features(self) -> int:
        """The width of the output."""
        return int(self.lora_b.out_features)

    @property
    def rank(self) -> int:
        """The rank of the update."""
        return int(self.lora_a.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output plus the low-rank update."""
        out: torch.Tensor = self.base(x) + self.lora_b(self.lora_a(x))
        return out


class _OneInput(SlotModule):
    """A layer whose outputs meet a vector, one number for each output.

    The vector is the weight of a linear layer from one input, which is always 1: backends keep such weights beside the
    program as they keep A and B, and a vector by itself they would not.
    """

    def __init__(self, base: torch.nn.Module, vector: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.vector = linear(vector)
        self.train(base.training)

    def _spread(self, out: torch.Tensor) -> torch.Tensor:
        """Return the vector in the shape of `out`, from a 1 that is computed so that nothing folds it away."""
        first = out[..., :1]
        spread: torch.Tensor = self.vector(torch.clamp(first - first, 1.0, 2.0))
        return spread


class GainedLinear(_OneInput):
    """`out = base(x) * gain`."""

    PARTS: Mapping[str, str] = {"gain": "vector.weight"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output, each number times its gain."""
        out: torch.Tensor = self.base(x)
        return out * self._spread(out)


class ShiftedLinear(_OneInput):
    """`out = base(x) + shift`."""

    PARTS: Mapping[str, str] = {"shift": "vector.weight"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's output, shifted."""
        out: torch.Tensor = self.base(x)
        return out + self._spread(out)


class WidenedLinear(SlotModule):
    """`out = base(x) + delta(x)`: a linear layer with another of the same size beside it."""

    PARTS: Mapping[str, str] = {"delta": "delta.weight"}

    def __init__(self, base: torch.nn.Module, delta: torch.Tensor) -> None:
        """Put a layer with the weight `delta` beside `base`."""
        super().__init__()
        self.base = base
        self.delta = linear(delta)
        self.train(base.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both layers."""
        out: torch.Tensor = self.base(x) + self.delta(x)
        return out


def linear(weight: torch.Tensor) -> torch.nn.Linear:
    """Return a linear layer without bias whose weight is `weight`, the tensor itself."""
    with torch.device("meta"):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer
