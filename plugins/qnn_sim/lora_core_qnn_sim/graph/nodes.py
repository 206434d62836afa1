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

Op = Literal[
    "embed",
    "norm",
    "linear",
    "lora_a",
    "lora_b",
    "add",
    "rope",
    "rope_local",
    "attention",
    "silu",
    "gelu_tanh",
    "mul",
    "part",
    "cap",
    "convolve",
]


@attrs.frozen(kw_only=True)
class Node:
    """One operation. `output` and `inputs` name activations, `weights` static or updatable tensors by role.

    `inner` names activations that the operation quantizes on its way (attention: scores, capped scores where there is
    a cap, and probabilities). `share` says which values a part takes: from the first of so many equal shares to the
    second, of the third.
    """

    op: Op
    output: str
    inputs: tuple[str, ...] = ()
    weights: Mapping[str, str] = attrs.field(factory=dict)
    inner: tuple[str, ...] = ()
    heads: int = 0
    layer: int = 0
    share: tuple[int, int, int] | None = None


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
    if spec.dims.logit_cap is not None:
        nodes.append(Node(op="cap", output=spec.dims.logits, inputs=("lm_head.output",)))
    return tuple(nodes)


def _block(spec: GraphSpec, number: int, stream: str, slots: Mapping[str, LoraSlot]) -> Iterator[Node]:
    dims, prefix = spec.dims, f"layers.{number}"
    read = stream
    if dims.norms != "after":
        read = f"{prefix}.input_layernorm.output"
        yield _stream_norm(dims, f"{prefix}.input_layernorm", stream)
    if number in dims.convolving:
        yield from _convolution(dims, number, read, slots)
        mixed = f"{prefix}.conv.out_proj.output"
    else:
        yield from _attention(dims, number, read, slots)
        mixed = f"{prefix}.self_attn.o_proj.output"
    if dims.norms != "before":
        yield _stream_norm(dims, f"{prefix}.post_attention_layernorm", mixed)
        mixed = f"{prefix}.post_attention_layernorm.output"
    middle = f"{prefix}.attention_add.output"
    yield Node(op="add", output=middle, inputs=(stream, mixed))
    yield from _feed_forward(dims, prefix, middle, slots)


def _attention(dims: LlamaDims, number: int, read: str, slots: Mapping[str, LoraSlot]) -> Iterator[Node]:
    attention = f"layers.{number}.self_attn"
    if dims.fused:
        heads_of = {"q_proj": dims.n_heads, "k_proj": dims.n_kv_heads, "v_proj": dims.n_kv_heads}
        parts = {f"{attention}.{name}": heads for name, heads in heads_of.items()}
        yield from _fused(f"{attention}.qkv_proj", read, slots, dims.biased, parts)
    for kind, heads in (("q", dims.n_heads), ("k", dims.n_kv_heads), ("v", dims.n_kv_heads)):
        name = f"{attention}.{kind}_proj"
        if not dims.fused:
            yield from _linear(name, read, slots, dims.biased)
        if kind == "v":
            continue
        source = f"{name}.output"
        if dims.qk_norm:
            yield Node(
                op="norm",
                output=f"{attention}.{kind}_norm.output",
                inputs=(source,),
                weights={"weight": f"{attention}.{kind}_norm.weight"},
                heads=0 if dims.qk_norm_whole else heads,
            )
            source = f"{attention}.{kind}_norm.output"
        if number not in dims.unrotated:
            op: Op = "rope_local" if number in dims.local else "rope"
            yield Node(op=op, output=f"{attention}.{kind}_rope.output", inputs=(source,), heads=heads)
    capped = () if dims.score_cap is None else (f"{attention}.capped.output",)
    yield Node(
        op="attention",
        output=f"{attention}.mix.output",
        layer=number,
        heads=dims.n_heads,
        inputs=(query_output(dims, number, "q"), query_output(dims, number, "k"), f"{attention}.v_proj.output"),
        inner=(f"{attention}.scores.output", *capped, f"{attention}.softmax.output"),
    )
    yield from _linear(f"{attention}.o_proj", f"{attention}.mix.output", slots, dims.biased)


def _convolution(dims: LlamaDims, number: int, read: str, slots: Mapping[str, LoraSlot]) -> Iterator[Node]:
    name = f"layers.{number}.conv"
    before, after, value = (f"{name}.{part}" for part in ("before", "after", "value"))
    yield from _fused(f"{name}.in_proj", read, slots, dims.biased, {before: 1, after: 1, value: 1})
    fed = query_output(dims, number, "k")
    yield Node(op="mul", output=fed, inputs=(f"{before}.output", f"{value}.output"))
    weights = {"weight": f"{name}.conv.weight"} | ({"bias": f"{name}.conv.bias"} if dims.conv_bias else {})
    yield Node(op="convolve", output=f"{name}.mix.output", inputs=(fed,), weights=weights, layer=number)
    yield Node(op="mul", output=f"{name}.gated.output", inputs=(f"{after}.output", f"{name}.mix.output"))
    yield from _linear(f"{name}.out_proj", f"{name}.gated.output", slots, dims.biased)


def _fused(
    name: str, source: str, slots: Mapping[str, LoraSlot], biased: tuple[str, ...], parts: Mapping[str, int]
) -> Iterator[Node]:
    """Yield one linear layer that is several side by side, with so many shares of its outputs, and what is theirs."""
    yield from _linear(name, source, slots, biased)
    begin, total = 0, sum(parts.values())
    for part, shares in parts.items():
        share = (begin, begin + shares, total)
        yield Node(op="part", output=f"{part}.output", inputs=(f"{name}.output",), share=share)
        begin += shares


def query_output(dims: LlamaDims, number: int, kind: Literal["q", "k"]) -> str:
    """Return the name of the queries or keys that the attention of a layer reads: what is cached of keys.

    A layer that convolves caches what it sums.
    """
    if number in dims.convolving:
        return f"layers.{number}.conv.fed.output"
    attention = f"layers.{number}.self_attn"
    if number not in dims.unrotated:
        return f"{attention}.{kind}_rope.output"
    return f"{attention}.{kind}_norm.output" if dims.qk_norm else f"{attention}.{kind}_proj.output"


def value_output(dims: LlamaDims, number: int) -> str:
    """Return the name of the values that a layer caches; a layer that convolves caches nothing but what it sums."""
    return query_output(dims, number, "k") if number in dims.convolving else f"layers.{number}.self_attn.v_proj.output"


def _stream_norm(dims: LlamaDims, name: str, stream: str) -> Node:
    weights = {} if dims.rotated else {"weight": f"{name}.weight"}
    return Node(op="norm", output=f"{name}.output", inputs=(stream,), weights=weights)


def _feed_forward(dims: LlamaDims, prefix: str, stream: str, slots: Mapping[str, LoraSlot]) -> Iterator[Node]:
    norm = {"before": "post_attention_layernorm", "around": "pre_feedforward_layernorm", "after": ""}[dims.norms]
    read = stream
    if norm:
        read = f"{prefix}.{norm}.output"
        yield _stream_norm(dims, f"{prefix}.{norm}", stream)
    gate, up = f"{prefix}.mlp.gate_proj", f"{prefix}.mlp.up_proj"
    activated = Node(op=dims.activation, output=f"{prefix}.mlp.{dims.activation}.output", inputs=(f"{gate}.output",))
    if dims.fused:
        yield from _fused(f"{prefix}.mlp.gate_up_proj", read, slots, dims.biased, {gate: 1, up: 1})
        yield activated
    else:
        yield from _linear(gate, read, slots, dims.biased)
        yield activated
        yield from _linear(up, read, slots, dims.biased)
    product = f"{prefix}.mlp.mul.output"
    yield Node(op="mul", output=product, inputs=(activated.output, f"{up}.output"))
    yield from _linear(f"{prefix}.mlp.down_proj", product, slots, dims.biased)
    fed = f"{prefix}.mlp.down_proj.output"
    if dims.norms != "before":
        yield _stream_norm(dims, f"{prefix}.post_feedforward_layernorm", fed)
        fed = f"{prefix}.post_feedforward_layernorm.output"
    yield Node(op="add", output=f"{prefix}.mlp_add.output", inputs=(stream, fed))


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


def columns_of(part: Node, width: int) -> slice:
    """Return which of the `width` values of its input the node `part` takes."""
    assert part.share is not None, "parts have a share"
    begin, end, total = part.share
    return slice(width * begin // total, width * end // total)


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
    nodes = [attrs.asdict(node, filter=_is_told) for node in build_nodes(spec)]
    data: Any = {"spec": spec.to_json(), "nodes": nodes}
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def _is_told(attribute: attrs.Attribute[Any], value: object) -> bool:
    # Nodes that are no part hash as they did before there were parts.
    return attribute.name != "share" or value is not None
