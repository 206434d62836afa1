"""Quantization policies: backend-neutral decisions per layer, as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import attrs

from lora_core.layers import LayerInfo


@attrs.frozen(kw_only=True)
class Scheme:
    """How one kind of layer is quantized.

    `bits` of the weight (4, 8; 16 means float16). `granularity`: one scale per group of `group_size` input elements,
    per output channel, or per tensor. `activations`: `float`, or `int8_dynamic` (quantized per token at run time), or
    `uint8`/`uint16` (static, calibrated).
    """

    bits: int
    granularity: Literal["group", "channel", "tensor"] = "channel"
    group_size: int | None = None
    activations: Literal["float", "int8_dynamic", "uint8", "uint16"] = "float"
    symmetric: bool = True


@attrs.frozen(kw_only=True)
class Assignment:
    """What a policy decided for the layers of one base.

    `schemes` maps each layer's name to its scheme, or None for full precision. `undivided` are the layers that a group
    size does not divide: they stay at full precision and are reported.
    """

    schemes: dict[str, Scheme | None]
    undivided: tuple[LayerInfo, ...] = ()


@attrs.frozen(kw_only=True)
class QuantPolicy:
    """Decisions for linear layers, the output head and embeddings; None keeps float32. LoRA A/B stay as they are
    unless `lora` says otherwise.

    `output` applies to the output head, `linear` to all other linear layers.
    """

    name: str
    summary: str
    linear: Scheme | None = None
    output: Scheme | None = None
    embedding: Scheme | None = None
    lora: Scheme | None = None

    def decide(self, layer: LayerInfo) -> Scheme | None:
        """Return the scheme for `layer`; whether its group size divides the layer is `assign`'s business."""
        if layer.kind == "embedding":
            return self.embedding
        return self.output if layer.is_output else self.linear

    def assign(self, layers: Sequence[LayerInfo]) -> Assignment:
        """Decide for every layer; a function of the base alone, never of adapters."""
        schemes: dict[str, Scheme | None] = {}
        undivided: list[LayerInfo] = []
        for layer in layers:
            scheme = self.decide(layer)
            width = layer.out_features if layer.kind == "embedding" else layer.in_features
            if scheme is not None and scheme.group_size and width % scheme.group_size:
                undivided.append(layer)
                scheme = None
            schemes[layer.name] = scheme
        return Assignment(schemes=schemes, undivided=tuple(undivided))


HALF = Scheme(bits=16)
"""Weights rounded to float16."""
FP16 = QuantPolicy(
    name="fp16",
    summary="No quantization: weights in float16, or in the precision of --dtype where a backend has that option",
    linear=HALF,
    output=HALF,
    embedding=HALF,
)
