"""Names and shapes of the modules and tensors of a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from lora_core.layers import LayerInfo
from lora_core.models.architecture import Architecture

EMBEDDING = "model.embed_tokens"
OUTPUT = "lm_head"
FINAL_NORM = "model.norm"
BLOCKS = "model.layers."


def layers(architecture: Architecture) -> tuple[LayerInfo, ...]:
    """Return the linear layers and the embedding, in the order of the Hugging Face module."""
    embedding = LayerInfo(
        name=EMBEDDING,
        kind="embedding",
        in_features=architecture.vocab_size,
        out_features=architecture.dim,
    )
    output = LayerInfo(
        name=OUTPUT,
        kind="linear",
        in_features=architecture.dim,
        out_features=architecture.vocab_size,
        is_output=True,
        tied_to=EMBEDDING if architecture.tied else None,
    )
    blocks = (layer for index in range(architecture.layers) for layer in _block(architecture, index))
    return (embedding, *blocks, output)


def _block(architecture: Architecture, index: int) -> Iterator[LayerInfo]:
    dim, hidden, head_dim = architecture.dim, architecture.hidden_dim, architecture.head_dim
    attention, mlp = architecture.qkv_bias, architecture.mlp_bias
    for name, in_features, out_features, bias in (
        ("self_attn.q_proj", dim, architecture.heads * head_dim, attention),
        ("self_attn.k_proj", dim, architecture.kv_heads * head_dim, attention),
        ("self_attn.v_proj", dim, architecture.kv_heads * head_dim, attention),
        ("self_attn.o_proj", architecture.heads * head_dim, dim, architecture.o_bias),
        ("mlp.gate_proj", dim, hidden, mlp),
        ("mlp.up_proj", dim, hidden, mlp),
        ("mlp.down_proj", hidden, dim, mlp),
    ):
        yield LayerInfo(
            name=f"{BLOCKS}{index}.{name}",
            kind="linear",
            in_features=in_features,
            out_features=out_features,
            has_bias=bias,
        )


def norms(architecture: Architecture) -> dict[str, int]:
    """Return the normalizations with their widths."""
    found: dict[str, int] = {}
    for index in range(architecture.layers):
        block = f"{BLOCKS}{index}"
        if architecture.qk_norm:
            found[f"{block}.self_attn.q_norm"] = architecture.head_dim
            found[f"{block}.self_attn.k_norm"] = architecture.head_dim
        found[f"{block}.input_layernorm"] = architecture.dim
        found[f"{block}.post_attention_layernorm"] = architecture.dim
    found[FINAL_NORM] = architecture.dim
    return found


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the tensors that the checkpoint must hold, with their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in layers(architecture):
        if layer.tied_to is not None:
            continue
        wide = (layer.out_features, layer.in_features)
        shapes[f"{layer.name}.weight"] = wide if layer.kind == "linear" else wide[::-1]
        if layer.has_bias:
            shapes[f"{layer.name}.bias"] = (layer.out_features,)
    shapes.update({f"{name}.weight": (width,) for name, width in norms(architecture).items()})
    return shapes


def module_names(architecture: Architecture) -> tuple[str, ...]:
    """Return every module name of the Hugging Face model in its own order: what PEFT matches patterns against."""
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"] + (["q_norm", "k_norm"] if architecture.qk_norm else [])
    block = (
        "self_attn",
        *(f"self_attn.{name}" for name in attention),
        "mlp",
        *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj", "act_fn")),
        "input_layernorm",
        "post_attention_layernorm",
    )
    names = ["model", EMBEDDING, BLOCKS.removesuffix(".")]
    for index in range(architecture.layers):
        names.append(f"{BLOCKS}{index}")
        names.extend(f"{BLOCKS}{index}.{name}" for name in block)
    return (*names, FINAL_NORM, "model.rotary_emb", OUTPUT)
