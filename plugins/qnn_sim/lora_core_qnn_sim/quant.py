"""The quantization policies of the simulator, and the bit widths that a policy and the options give together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import attrs

from lora_core.errors import Problem
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.quant.policy import QuantPolicy, Scheme

if TYPE_CHECKING:
    from lora_core_qnn_sim.options import QnnSimOptions

# Embedding and output head stay at 8 bits: at 4 bits per row they lose more than all other layers together.
_HEAD_BITS = 8


def _policy(weight_bits: int, act_bits: int, lora_bits: int) -> QuantPolicy:
    activations: Literal["uint8", "uint16"] = "uint16" if act_bits == 16 else "uint8"
    head = Scheme(bits=_HEAD_BITS, granularity="channel", activations=activations)
    return QuantPolicy(
        name=f"w{weight_bits}a{act_bits}",
        summary=f"{weight_bits}-bit weights per channel, static uint{act_bits} activations, int{lora_bits} LoRA",
        linear=Scheme(bits=weight_bits, granularity="channel", activations=activations),
        output=head,
        embedding=head,
        lora=Scheme(bits=lora_bits, granularity="tensor", activations=activations),
    )


POLICIES = (_policy(8, 16, 16), _policy(4, 16, 16), _policy(8, 8, 8))


@attrs.frozen(kw_only=True)
class Widths:
    """Bits of linear weights, of the output head, of the embedding, of activations and of LoRA weights."""

    weights: int
    head: int
    embedding: int
    activations: int
    lora: int


def widths(policy: QuantPolicy, options: QnnSimOptions) -> Widths:
    """Return the widths of a supported policy, each replaced by the option that names it."""
    linear, head, embedding, lora = policy.linear, policy.output, policy.embedding, policy.lora
    if linear is None or head is None or embedding is None or lora is None:
        raise ValueError(f"policy {policy.name} leaves layers at full precision")
    return Widths(
        weights=options.weight_bits or linear.bits,
        head=head.bits,
        embedding=embedding.bits,
        activations=options.act_bits or (16 if linear.activations == "uint16" else 8),
        lora=options.lora_bits or lora.bits,
    )


def policy_problems(policy: QuantPolicy) -> list[Problem]:
    """Return why the simulator cannot do `policy`; it needs static integers everywhere."""
    remedy = f"Choose one of {', '.join(known.name for known in POLICIES)}."
    problems = []
    for part, scheme in (("linear", policy.linear), ("output", policy.output), ("embedding", policy.embedding)):
        if scheme is None:
            problems.append(f"leaves {part} layers at full precision")
        elif part != "embedding" and scheme.activations not in ("uint8", "uint16"):  # token ids have no activations
            problems.append(f"has {scheme.activations} activations for {part} layers")
        elif scheme.granularity != "channel" or scheme.bits not in (4, 8):
            problems.append(f"asks for {scheme.bits} bits per {scheme.granularity} for {part} layers")
    if policy.lora is None:
        problems.append("does not say how LoRA weights are quantized")
    return [
        Problem(what=f"Policy {policy.name!r} {problem}, which a static integer graph has no place for", remedy=remedy)
        for problem in problems
    ]


def weight_bits(summary: ModelSummary, bits: Widths) -> Mapping[str, int]:
    """Return the bits of every matrix of the base, by the graph's tensor name."""
    from lora_core_qnn_sim.graph.spec import graph_name  # every command imports the policies, and few a graph

    def of(layer: LayerInfo) -> int:
        if layer.kind == "embedding":
            return bits.embedding
        return bits.head if layer.is_output else bits.weights

    return {f"{graph_name(layer.name)}.weight": of(layer) for layer in summary.layers}
