"""How many bits each activation has."""

from __future__ import annotations

from lora_core_qnn_sim.graph.nodes import activations, build_nodes, lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec

# With 8-bit activations these stay at 16: the residual stream of real decoders has single channels a thousand times
# larger than the rest, so 8 bits would leave nothing of the others, and attention scores feed an exponential.
_WIDE = (
    "embed_tokens.output",
    "attention_add.output",
    "mlp_add.output",
    "down_proj.output",
    "down_proj.base.output",
    "down_proj.lora_b.output",
    "o_proj.output",
    "o_proj.base.output",
    "o_proj.lora_b.output",
    "conv.out_proj.output",
    "conv.out_proj.base.output",
    "conv.out_proj.lora_b.output",
    "mlp.mul.output",
    "scores.output",
    "lm_head.output",
    "lm_head.base.output",
    "lm_head.lora_b.output",
    "lm_head.capped.output",
    "self_attn.capped.output",
    "post_feedforward_layernorm.output",
)


def activation_bits(spec: GraphSpec, name: str) -> int:
    """Return the bits of an activation: `spec.act_bits`, but 16 where 8 would destroy the model."""
    wide = _WIDE if spec.dims.norms == "before" else (*_WIDE, "post_attention_layernorm.output")
    return 16 if name.endswith(wide) else spec.act_bits


def tensor_bits(spec: GraphSpec) -> dict[str, int]:
    """Return the bits of every tensor that has a per-tensor encoding: activations, then LoRA weights."""
    bits = {name: activation_bits(spec, name) for name in activations(build_nodes(spec))}
    return bits | dict.fromkeys(lora_weights(spec), spec.lora_bits)
