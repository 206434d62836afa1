"""Names and shapes of the modules and tensors of a Hugging Face checkpoint."""

from __future__ import annotations

from collections.abc import Iterator

from lora_core.layers import LayerInfo
from lora_core.models.architecture import Architecture
from lora_core.models.layer_kinds import LayerKind

EMBEDDING = "model.embed_tokens"
OUTPUT = "lm_head"
FINAL_NORM = "model.norm"
BLOCKS = "model.layers."
CONVOLUTION, CONVOLUTION_BIAS = "conv.conv.weight", "conv.conv.bias"


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


def spelled(architecture: Architecture, name: str) -> str:
    """Return what the checkpoint calls the module that Llama calls `name`, in a block or outside."""
    return architecture.names.get(name, name)


def final_norm(architecture: Architecture) -> str:
    """Return the name of the last normalization."""
    return spelled(architecture, FINAL_NORM)


def _block(architecture: Architecture, index: int) -> Iterator[LayerInfo]:
    for name, (in_features, out_features, bias) in _linears(architecture, index).items():
        yield LayerInfo(
            name=f"{BLOCKS}{index}.{spelled(architecture, name)}",
            kind="linear",
            in_features=in_features,
            out_features=out_features,
            has_bias=bias,
        )


def _linears(architecture: Architecture, index: int) -> dict[str, tuple[int, int, bool]]:
    """Return the linear layers of a block by Llama's names, in the module's order: sizes, and whether with a bias."""
    dim, hidden, bias = architecture.dim, architecture.hidden_dim, architecture.mlp_bias
    mlp = {"mlp.gate_proj": (dim, hidden, bias), "mlp.up_proj": (dim, hidden, bias)}
    if architecture.fused:
        mlp = {"mlp.gate_up_proj": (dim, 2 * hidden, bias)}
    return {**_mixing(architecture, index), **mlp, "mlp.down_proj": (hidden, dim, bias)}


def _mixing(architecture: Architecture, index: int) -> dict[str, tuple[int, int, bool]]:
    dim, bias = architecture.dim, architecture.qkv_bias
    q, kv = architecture.heads * architecture.head_dim, architecture.kv_heads * architecture.head_dim
    delta = architecture.delta
    if architecture.kinds[index].mixes == "delta" and delta is not None:
        values = delta.value_heads * delta.value_dim
        widths = {"qkv": delta.channels, "z": values, "b": delta.value_heads, "a": delta.value_heads}
        ins = {f"linear_attn.in_proj_{name}": (dim, width, False) for name, width in widths.items()}
        return {"linear_attn.out_proj": (values, dim, False), **ins}
    if architecture.kinds[index].mixes == "convolution":
        bias = architecture.conv_bias
        return {"conv.in_proj": (dim, 3 * dim, bias), "conv.out_proj": (dim, dim, bias)}
    output = {"self_attn.o_proj": (q, dim, architecture.o_bias)}
    if architecture.fused:  # in the order of Phi-3's module, where the output comes first
        return {**output, "self_attn.qkv_proj": (dim, q + 2 * kv, bias)}
    widths = {"q_proj": q * (2 if architecture.gated_queries else 1), "k_proj": kv, "v_proj": kv}
    return {**{f"self_attn.{name}": (dim, width, bias) for name, width in widths.items()}, **output}


def mixing_tensors(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Return the tensors of what mixes tokens that are of no linear layer and no norm, with their shapes."""
    found: dict[str, tuple[int, ...]] = {}
    for index, kind in enumerate(architecture.kinds):
        for name, shape in _own_tensors(architecture, kind).items():
            found[f"{BLOCKS}{index}.{name}"] = shape
    return found


def _own_tensors(architecture: Architecture, kind: LayerKind) -> dict[str, tuple[int, ...]]:
    if kind.mixes == "convolution":
        bias = {CONVOLUTION_BIAS: (architecture.dim,)} if architecture.conv_bias else {}
        return {CONVOLUTION: (architecture.dim, 1, architecture.taps), **bias}
    if kind.mixes == "delta" and architecture.delta is not None:
        delta = architecture.delta
        return {
            "linear_attn.conv1d.weight": (delta.channels, 1, delta.taps),
            "linear_attn.dt_bias": (delta.value_heads,),
            "linear_attn.A_log": (delta.value_heads,),
            "linear_attn.norm.weight": (delta.value_dim,),
        }
    return {}


def tap(name: str, index: int) -> str:
    """Return what the weights of one tap of the convolution that is stored as `name` are called."""
    return f"{name}[..., {index}]"


def block_norms(architecture: Architecture) -> tuple[str, ...]:
    """Return the names of a block's normalizations of the stream, in the module's order."""
    return {
        "before": ("input_layernorm", "post_attention_layernorm"),
        "around": (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        "after": ("post_attention_layernorm", "post_feedforward_layernorm"),
    }[architecture.norms]


def norms(architecture: Architecture) -> dict[str, int]:
    """Return the normalizations with their widths."""
    found: dict[str, int] = {}
    head_dim, whole = architecture.head_dim, architecture.qk_norm_whole
    for index, kind in enumerate(architecture.kinds):
        widths = dict.fromkeys(block_norms(architecture), architecture.dim)
        if architecture.qk_norm and kind.mixes == "attention":
            heads = (architecture.heads, architecture.kv_heads) if whole else (1, 1)
            of_heads = {"self_attn.q_norm": head_dim * heads[0], "self_attn.k_norm": head_dim * heads[1]}
            widths = {**of_heads, **widths}
        found |= {f"{BLOCKS}{index}.{spelled(architecture, name)}": width for name, width in widths.items()}
    found[final_norm(architecture)] = architecture.dim
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
    return shapes | mixing_tensors(architecture)


def module_names(architecture: Architecture) -> tuple[str, ...]:
    """Return every module name of the Hugging Face model in its own order: what PEFT matches patterns against."""
    names = ["model", EMBEDDING, BLOCKS.removesuffix(".")]
    for index in range(architecture.layers):
        names.append(f"{BLOCKS}{index}")
        names += [f"{BLOCKS}{index}.{spelled(architecture, name)}" for name in _block_modules(architecture, index)]
    last = [final_norm(architecture), "model.rotary_emb"]
    if architecture.taps:  # Liquid's module has its last norm behind the rotary tables
        last.reverse()
    return (*names, *last, OUTPUT)


def _block_modules(architecture: Architecture, index: int) -> list[str]:
    linear = list(_linears(architecture, index))
    mlp = [name for name in linear if name.startswith("mlp.")]
    if architecture.kinds[index].mixes == "convolution":
        mixing = ["conv", "conv.conv", "conv.in_proj", "conv.out_proj"]
    elif architecture.kinds[index].mixes == "delta":
        ins = [name for name in linear if name.startswith("linear_attn.in_")]
        mixing = ["linear_attn", "linear_attn.conv1d", "linear_attn.norm", "linear_attn.out_proj", *ins]
    else:
        mixing = ["self_attn", *(name for name in linear if name.startswith("self_attn."))]
        mixing += ["self_attn.q_norm", "self_attn.k_norm"] if architecture.qk_norm else []
    norms = list(block_norms(architecture))
    if architecture.taps:  # Liquid's MLP calls its activation, and has w1, w3, w2
        return [*mixing, "mlp", *mlp, *norms]
    if architecture.fused:  # Phi-3's module has dropout in its blocks
        return [*mixing, "mlp", *mlp, "mlp.activation_fn", *norms, "resid_attn_dropout", "resid_mlp_dropout"]
    return [*mixing, "mlp", *mlp, "mlp.act_fn", *norms]
