"""The state of a LoRA branch before any section: zero weights, and the grids that fit them."""

from __future__ import annotations

from lora_core_qnn_sim.encodings.grid import Encoding, asymmetric, symmetric
from lora_core_qnn_sim.graph.nodes import lora_activations, lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.graph.widths import tensor_bits


def initial_branch(spec: GraphSpec) -> dict[str, Encoding]:
    """Return the encodings of LoRA branches that nothing has calibrated; they follow from the graph alone."""
    bits = tensor_bits(spec)
    grids = {name: asymmetric(0.0, 0.0, bits[name]) for name in lora_activations(spec)}
    return grids | {name: symmetric(0.0, bits[name]) for name in lora_weights(spec)}
