"""Names and shapes: the tensors of a Hugging Face checkpoint beside ExecuTorch's names for them."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from lora_core.models.architecture import Architecture
from lora_core.models.base import LayerInfo

EMBEDDING = "model.embed_tokens"
OUTPUT = "lm_head"


@attrs.frozen(kw_only=True)
class Paths:
    """ExecuTorch's module names inside one block, for one kind of attention."""

    q: str = "attention.wq"
    k: str = "attention.wk"
    v: str = "attention.wv"
    q_norm: str = "attention.q_norm_fn"
    k_norm: str = "attention.k_norm_fn"


MULTI_HEAD = Paths()
STATIC = Paths(
    q="attention.wqs.0",
    k="attention.wks.0",
    v="attention.wvs.0",
    q_norm="attention.q_norm",
    k_norm="attention.k_norm",
)


def layers(architecture: Architecture, paths: Paths = MULTI_HEAD) -> tuple[LayerInfo, ...]:
    """Return the linear layers and the embedding, in the order of the Hugging Face module."""
    embedding = LayerInfo(
        name=EMBEDDING,
        path="tok_embeddings",
        kind="embedding",
        in_features=architecture.vocab_size,
        out_features=architecture.dim,
    )
    output = LayerInfo(
        name=OUTPUT,
        path="output",
        kind="linear",
        in_features=architecture.dim,
        out_features=architecture.vocab_size,
        is_output=True,
        tied_to=EMBEDDING if architecture.tied else None,
    )
    blocks = (layer for index in range(architecture.layers) for layer in _block(architecture, paths, index))
    return (embedding, *blocks, output)


def _block(architecture: Architecture, paths: Paths, index: int) -> Iterator[LayerInfo]:
    dim, hidden, head_dim = architecture.dim, architecture.hidden_dim, architecture.head_dim
    attention, mlp = architecture.qkv_bias, architecture.mlp_bias
    for name, path, in_features, out_features, bias in (
        ("self_attn.q_proj", paths.q, dim, architecture.heads * head_dim, attention),
        ("self_attn.k_proj", paths.k, dim, architecture.kv_heads * head_dim, attention),
        ("self_attn.v_proj", paths.v, dim, architecture.kv_heads * head_dim, attention),
        ("self_attn.o_proj", "attention.wo", architecture.heads * head_dim, dim, architecture.o_bias),
        ("mlp.gate_proj", "feed_forward.w1", dim, hidden, mlp),
        ("mlp.up_proj", "feed_forward.w3", dim, hidden, mlp),
        ("mlp.down_proj", "feed_forward.w2", hidden, dim, mlp),
    ):
        yield LayerInfo(
            name=f"model.layers.{index}.{name}",
            path=f"layers.{index}.{path}",
            kind="linear",
            in_features=in_features,
            out_features=out_features,
            has_bias=bias,
        )


def norms(architecture: Architecture, paths: Paths = MULTI_HEAD) -> dict[str, tuple[str, int]]:
    """Return the normalizations: Hugging Face module name to ExecuTorch's name and width."""
    found: dict[str, tuple[str, int]] = {}
    for index in range(architecture.layers):
        theirs, ours = f"model.layers.{index}", f"layers.{index}"
        if architecture.qk_norm:
            found[f"{theirs}.self_attn.q_norm"] = (f"{ours}.{paths.q_norm}", architecture.head_dim)
            found[f"{theirs}.self_attn.k_norm"] = (f"{ours}.{paths.k_norm}", architecture.head_dim)
        found[f"{theirs}.input_layernorm"] = (f"{ours}.attention_norm", architecture.dim)
        found[f"{theirs}.post_attention_layernorm"] = (f"{ours}.ffn_norm", architecture.dim)
    found["model.norm"] = ("norm", architecture.dim)
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
    shapes.update({f"{name}.weight": (width,) for name, (_, width) in norms(architecture).items()})
    return shapes


def parameter_names(architecture: Architecture, paths: Paths) -> dict[str, str]:
    """Return ExecuTorch's parameter names, each with the checkpoint tensor it is filled from."""
    names: dict[str, str] = {}
    for layer in layers(architecture, paths):
        names[f"{layer.path}.weight"] = f"{layer.tied_to or layer.name}.weight"
        if layer.has_bias:
            names[f"{layer.path}.bias"] = f"{layer.name}.bias"
    names.update({f"{ours}.weight": f"{theirs}.weight" for theirs, (ours, _) in norms(architecture, paths).items()})
    return names


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
    names = ["model", EMBEDDING, "model.layers"]
    for index in range(architecture.layers):
        names.append(f"model.layers.{index}")
        names.extend(f"model.layers.{index}.{name}" for name in block)
    return (*names, "model.norm", "model.rotary_emb", OUTPUT)
