"""The nodes of a Llama-family decoder with LoRA branches, in execution order.

Prefill and decode are the same nodes at two static lengths; the base weights they name are stored once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import attrs

from lora_core_qnn_sim.artifacts.container import canonical_json
from lora_core_qnn_sim.graph.spec import GraphSpec, LlamaDims, LoraSlot, lora_a, lora_b

Op = Literal["embed", "norm", "linear", "lora_a", "lora_b", "add", "rope", "attention", "silu", "gelu_tanh", "mul"]


@attrs.frozen(kw_only=True)
class Node:
    """One operation. `output` and `inputs` name activations, `weights` static or updatable tensors by role.

    `inner` names activations that the operation quantizes on its way (attention: scores and probabilities).
    """

    op: Op
    output: str
    inputs: tuple[str, ...] = ()
    weights: Mapping[str, str] = attrs.field(factory=dict)
    inner: tuple[str, ...] = ()
    heads: int = 0
    layer: int = 0


def build_nodes(spec: GraphSpec) -> tuple[Node, ...]:
    """Return the nodes of `spec`."""
    slots = {slot.layer: slot for slot in spec.slots}
    nodes: list[Node] = [Node(op="embed", output="embed_tokens.output", weights={"weight": "embed_tokens.weight"})]
    stream = "embed_tokens.output"
    for number in range(spec.dims.n_layers):
        for node in _block(spec, number, stream, slots):
            nodes.append(node)
            stream = node.output
    nodes.append(_stream_norm(spec.dims, "norm", stream))
    head = "embed_tokens.weight" if spec.dims.tied else "lm_head.weight"
    nodes.extend(_linear("lm_head", "norm.output", slots, (), weight=head))
    return tuple(nodes)


def _block(spec: GraphSpec, number: int, stream: str, slots: Mapping[str, LoraSlot]) -> Iterator[Node]:
    dims, prefix = spec.dims, f"layers.{number}"
    attention = f"{prefix}.self_attn"
    normed = f"{prefix}.input_layernorm.output"
    yield _stream_norm(dims, f"{prefix}.input_layernorm", stream)
    for kind, heads in (("q", dims.n_heads), ("k", dims.n_kv_heads), ("v", dims.n_kv_heads)):
        name = f"{attention}.{kind}_proj"
        yield from _linear(name, normed, slots, dims.biased)
        if kind == "v":
            continue
        source = f"{name}.output"
        if dims.qk_norm:
            weights = {"weight": f"{attention}.{kind}_norm.weight"}
            yield Node(
                op="norm", output=f"{attention}.{kind}_norm.output", inputs=(source,), weights=weights, heads=heads
            )
            source = f"{attention}.{kind}_norm.output"
        if number not in dims.unrotated:
            yield Node(op="rope", output=f"{attention}.{kind}_rope.output", inputs=(source,), heads=heads)
    yield Node(
        op="attention",
        output=f"{attention}.mix.output",
        layer=number,
        heads=dims.n_heads,
        inputs=(query_output(dims, number, "q"), query_output(dims, number, "k"), f"{attention}.v_proj.output"),
        inner=(f"{attention}.scores.output", f"{attention}.softmax.output"),
    )
    yield from _linear(f"{attention}.o_proj", f"{attention}.mix.output", slots, dims.biased)
    middle = f"{prefix}.attention_add.output"
    yield Node(op="add", output=middle, inputs=(stream, f"{attention}.o_proj.output"))
    yield from _feed_forward(dims, prefix, middle, slots)


def query_output(dims: LlamaDims, number: int, kind: Literal["q", "k"]) -> str:
    """Return the name of the queries or keys that the attention of a layer reads: what is cached of keys."""
    attention = f"layers.{number}.self_attn"
    if number not in dims.unrotated:
        return f"{attention}.{kind}_rope.output"
    return f"{attention}.{kind}_norm.output" if dims.qk_norm else f"{attention}.{kind}_proj.output"


def _stream_norm(dims: LlamaDims, name: str, stream: str) -> Node:
    weights = {} if dims.rotated else {"weight": f"{name}.weight"}
    return Node(op="norm", output=f"{name}.output", inputs=(stream,), weights=weights)


def _feed_forward(dims: LlamaDims, prefix: str, stream: str, slots: Mapping[str, LoraSlot]) -> Iterator[Node]:
    normed = f"{prefix}.post_attention_layernorm.output"
    yield _stream_norm(dims, f"{prefix}.post_attention_layernorm", stream)
    yield from _linear(f"{prefix}.mlp.gate_proj", normed, slots, dims.biased)
    activated = f"{prefix}.mlp.{dims.activation}.output"
    yield Node(op=dims.activation, output=activated, inputs=(f"{prefix}.mlp.gate_proj.output",))
    yield from _linear(f"{prefix}.mlp.up_proj", normed, slots, dims.biased)
    product = f"{prefix}.mlp.mul.output"
    yield Node(op="mul", output=product, inputs=(activated, f"{prefix}.mlp.up_proj.output"))
    yield from _linear(f"{prefix}.mlp.down_proj", product, slots, dims.biased)
    yield Node(op="add", output=f"{prefix}.mlp_add.output", inputs=(stream, f"{prefix}.mlp.down_proj.output"))


def _linear(
    name: str, source: str, slots: Mapping[str, LoraSlot], biased: tuple[str, ...], *, weight: str = ""
) -> Iterator[Node]:
    weights = {"weight": weight or f"{name}.weight"}
    if name.endswith(biased):
        weights["bias"] = f"{name}.bias"
    if name not in slots:
        yield Node(op="linear", output=f"{name}.output", inputs=(source,), weights=weights)
        return
    yield Node(op="linear", output=f"{name}.base.output", inputs=(source,), weights=weights)
    middle, delta = f"{name}.lora_a.output", f"{name}.lora_b.output"
    yield Node(op="lora_a", output=middle, inputs=(source,), weights={"weight": lora_a(name)})
    yield Node(op="lora_b", output=delta, inputs=(middle,), weights={"weight": lora_b(name)})
    yield Node(op="add", output=f"{name}.output", inputs=(f"{name}.base.output", delta))


def activations(nodes: tuple[Node, ...]) -> tuple[str, ...]:
    """Return the names of all quantized activations, in execution order."""
    return tuple(name for node in nodes for name in (*node.inner, node.output))


def lora_activations(spec: GraphSpec) -> tuple[str, ...]:
    """Return the activations inside the LoRA branches."""
    return tuple(f"{slot.layer}.lora_{side}.output" for slot in spec.slots for side in "ab")


def lora_weights(spec: GraphSpec) -> dict[str, tuple[int, int]]:
    """Return the updatable weights and their shapes, in slot order."""
    shapes: dict[str, tuple[int, int]] = {}
    for slot in spec.slots:
        shapes[lora_a(slot.layer)] = (slot.rank, slot.in_features)
        shapes[lora_b(slot.layer)] = (slot.out_features, slot.rank)
    return shapes


def topology_hash(spec: GraphSpec) -> str:
    """Return the SHA-256 hex of everything that a section relies on: nodes, shapes, data types."""
    data: Any = {"spec": spec.to_json(), "nodes": [attrs.asdict(node) for node in build_nodes(spec)]}
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()
