"""What a section may change: the three modes and their scopes."""

from __future__ import annotations

from lora_core_qnn_sim.graph.nodes import activations, build_nodes, lora_activations, lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.options import Mode


def encodings_scope(spec: GraphSpec, mode: Mode) -> frozenset[str]:
    """Return the tensors whose encodings a section may change in `mode`.

    `none`: nothing, LoRA weight values only. `adapter_only`: LoRA weights and the activations inside LoRA branches.
    `all`: every activation of the base too. Static base weights are never requantized: their integers are compiled in.
    """
    if mode == "none":
        return frozenset()
    branch = frozenset(lora_weights(spec)) | frozenset(lora_activations(spec))
    return branch if mode == "adapter_only" else branch | frozenset(activations(build_nodes(spec)))


def branch_tensors(spec: GraphSpec) -> frozenset[str]:
    """Return the tensors of the LoRA branches: those that depend on adapters in every mode."""
    return encodings_scope(spec, "adapter_only")
