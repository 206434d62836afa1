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
LAYER_EMBEDDING = "model.embed_tokens_per_layer"
LAYER_PROJECTION = "model.per_layer_model_projection"
LAYER_NORM = "model.per_layer_projection_norm"
INPUT_GATE, INPUT_PROJECTION = "per_layer_input_gate", "per_layer_projection"
INPUT_NORM = "post_per_layer_input_norm"
LAYER_SCALE = "layer_scalar"
ROUTER, EXPERTS = "mlp.gate.weight", "mlp.experts"
_OF_KEYS_AND_VALUES = ("k_norm", "v_norm", "k_proj", "v_proj")


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
    return (embedding, *blocks, *_inputs_of_layers(architecture), output)


def _inputs_of_layers(architecture: Architecture) -> tuple[LayerInfo, ...]:
    inputs = architecture.layer_inputs
    if inputs is None:
        return ()
    width = architecture.layers * inputs.width
    table = LayerInfo(name=LAYER_EMBEDDING, kind="embedding", in_features=inputs.rows, out_features=width)
    return table, LayerInfo(name=LAYER_PROJECTION, kind="linear", in_features=architecture.dim, out_features=width)


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
    dim, bias = architecture.dim, architecture.mlp_bias
    hidden = architecture.hidden_dim_of(architecture.kinds[index])
    mlp = {"mlp.gate_proj": (dim, hidden, bias), "mlp.up_proj": (dim, hidden, bias)}
    if architecture.fused:
        mlp = {"mlp.gate_up_proj": (dim, 2 * hidden, bias)}
    inputs = {}
    if architecture.layer_inputs is not None:
        width = architecture.layer_inputs.width
        inputs = {INPUT_GATE: (dim, width, False), INPUT_PROJECTION: (width, dim, False)}
    mlp["mlp.down_proj"] = (hidden, dim, bias)
    if architecture.kinds[index].experts:
        mlp = {}
    return {**_mixing(architecture, index), **mlp, **inputs}


def _mixing(architecture: Architecture, index: int) -> dict[str, tuple[int, int, bool]]:
    dim, bias, kind = architecture.dim, architecture.qkv_bias, architecture.kinds[index]
    head_dim = architecture.head_dim_of(kind)
    q, kv = architecture.heads * head_dim, architecture.kv_heads_of(kind) * head_dim
    delta = architecture.delta
    if kind.mixes == "delta" and delta is not None:
        values = delta.value_heads * delta.value_dim
        widths = {"qkv": delta.channels, "z": values, "b": delta.value_heads, "a": delta.value_heads}
        ins = {f"linear_attn.in_proj_{name}": (dim, width, False) for name, width in widths.items()}
        return {"linear_attn.out_proj": (values, dim, False), **ins}
    if kind.mixes == "convolution":
        bias = architecture.conv_bias
        return {"conv.in_proj": (dim, 3 * dim, bias), "conv.out_proj": (dim, dim, bias)}
    output = {"self_attn.o_proj": (q, dim, architecture.o_bias)}
    if architecture.fused:  # in the order of Phi-3's module, where the output comes first
        return {**output, "self_attn.qkv_proj": (dim, q + 2 * kv, bias)}
    widths = {"q_proj": q * (2 if architecture.gated_queries else 1)}
    if not kind.borrows:
        widths |= {"k_proj": kv} if kind.values_are_keys else {"k_proj": kv, "v_proj": kv}
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


def layer_scales(architecture: Architecture) -> tuple[str, ...]:
    """Return the tensors that blocks multiply their results by, one value each."""
    count = architecture.layers if architecture.layer_scale else 0
    return tuple(f"{BLOCKS}{index}.{LAYER_SCALE}" for index in range(count))


def routers(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """Return the tensors that choose experts, with their shapes."""
    experts = architecture.experts
    rows = 0 if experts is None else experts.count
    return {
        f"{BLOCKS}{index}.{ROUTER}": (rows, architecture.dim)
        for index, kind in enumerate(architecture.kinds)
        if kind.experts
    }


def expert_tensors(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """Return what all experts of a block are called together, one for each of their layers, with the tensors of each
    expert that it is made of.
    """
    count = 0 if architecture.experts is None else architecture.experts.count
    return {
        f"{BLOCKS}{index}.{EXPERTS}.{name}.weight": tuple(
            f"{BLOCKS}{index}.{EXPERTS}.{number}.{name}.weight" for number in range(count)
        )
        for index, kind in enumerate(architecture.kinds)
        for name in ("gate_proj", "up_proj", "down_proj")
        if kind.experts
    }


def _expert_shapes(architecture: Architecture) -> dict[str, tuple[int, int]]:
    if architecture.experts is None:
        return {}
    wide = (architecture.experts.hidden_dim, architecture.dim)
    return {
        name: wide[::-1] if together.endswith("down_proj.weight") else wide
        for together, names in expert_tensors(architecture).items()
        for name in names
    }


def leftovers(architecture: Architecture) -> tuple[str, ...]:
    """Return the modules that a checkpoint may hold and transformers leaves out: of blocks that borrow keys and values,
    what would make their own.
    """
    borrowing = [index for index, kind in enumerate(architecture.kinds) if kind.borrows]
    return tuple(f"{BLOCKS}{index}.self_attn.{name}" for index in borrowing for name in _OF_KEYS_AND_VALUES)


def tap(name: str, index: int) -> str:
    """Return what the weights of one tap of the convolution that is stored as `name` are called."""
    return f"{name}[..., {index}]"


def block_norms(architecture: Architecture) -> tuple[str, ...]:
    """Return the names of a block's normalizations of the stream, in the module's order."""
    around_input = (INPUT_NORM,) if architecture.layer_inputs is not None else ()
    return {
        "before": ("input_layernorm", "post_attention_layernorm"),
        "around": (
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        "after": ("post_attention_layernorm", "post_feedforward_layernorm"),
    }[architecture.norms] + around_input


def norms(architecture: Architecture) -> dict[str, int]:
    """Return the normalizations with their widths."""
    found: dict[str, int] = {}
    whole = architecture.qk_norm_whole
    for index, kind in enumerate(architecture.kinds):
        head_dim = architecture.head_dim_of(kind)
        widths = dict.fromkeys(block_norms(architecture), architecture.dim)
        if architecture.qk_norm and kind.mixes == "attention":
            heads = (architecture.heads, architecture.kv_heads) if whole else (1, 1)
            of_heads = {"self_attn.q_norm": head_dim * heads[0], "self_attn.k_norm": head_dim * heads[1]}
            if kind.borrows:
                del of_heads["self_attn.k_norm"]
            widths = {**of_heads, **widths}
        found |= {f"{BLOCKS}{index}.{spelled(architecture, name)}": width for name, width in widths.items()}
    found[final_norm(architecture)] = architecture.dim
    if architecture.layer_inputs is not None:
        found[LAYER_NORM] = architecture.layer_inputs.width
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
    shapes |= mixing_tensors(architecture) | dict.fromkeys(layer_scales(architecture), (1,))
    return shapes | routers(architecture) | _expert_shapes(architecture)


def module_names(architecture: Architecture) -> tuple[str, ...]:
    """Return every module name of the Hugging Face model in its own order: what PEFT matches patterns against."""
    names = ["model", EMBEDDING, BLOCKS.removesuffix(".")]
    for index in range(architecture.layers):
        names.append(f"{BLOCKS}{index}")
        names += [f"{BLOCKS}{index}.{spelled(architecture, name)}" for name in _block_modules(architecture, index)]
    last = [final_norm(architecture), "model.rotary_emb"]
    if architecture.taps:  # Liquid's module has its last norm behind the rotary tables
        last.reverse()
    if architecture.layer_inputs is not None:
        last += [LAYER_EMBEDDING, LAYER_PROJECTION, LAYER_NORM]
    return (*names, *last, OUTPUT)


def _block_modules(architecture: Architecture, index: int) -> list[str]:
    linear = list(_linears(architecture, index))
    mlp = [name for name in linear if name.startswith("mlp.")]
    if architecture.kinds[index].mixes == "convolution":
        mixing = ["conv", "conv.conv", "conv.in_proj", "conv.out_proj"]
    elif architecture.kinds[index].mixes == "delta":
        ins = [name for name in linear if name.startswith("linear_attn.in_")]
        mixing = ["linear_attn", "linear_attn.conv1d", "linear_attn.norm", "linear_attn.out_proj", *ins]
    elif architecture.value_norm:
        mixing = ["self_attn", *_with_norms(linear)]
    else:
        mixing = ["self_attn", *(name for name in linear if name.startswith("self_attn."))]
        mixing += ["self_attn.q_norm", "self_attn.k_norm"] if architecture.qk_norm else []
    norms = list(block_norms(architecture))
    if architecture.kinds[index].experts:
        return [*mixing, "mlp", EXPERTS, f"{EXPERTS}.act_fn", "mlp.gate", *norms]
    if architecture.layer_inputs is not None:  # Gemma 4's block has an activation of its own before its gate
        gate = ["act_fn", INPUT_GATE, INPUT_PROJECTION, norms.pop()]
        return [*mixing, "mlp", *mlp, "mlp.act_fn", *norms, *gate]
    if architecture.taps:  # Liquid's MLP calls its activation, and has w1, w3, w2
        return [*mixing, "mlp", *mlp, *norms]
    if architecture.fused:  # Phi-3's module has dropout in its blocks
        return [*mixing, "mlp", *mlp, "mlp.activation_fn", *norms, "resid_attn_dropout", "resid_mlp_dropout"]
    return [*mixing, "mlp", *mlp, "mlp.act_fn", *norms]


def _with_norms(linear: list[str]) -> list[str]:
    """Return attention's modules as Gemma 4's has them: each norm of keys and values before their layers."""
    keys = [f"self_attn.{name}" for name in ("k_proj", "v_proj") if f"self_attn.{name}" in linear]
    norms = ["self_attn.k_norm", "self_attn.v_norm"] if keys else []
    return ["self_attn.q_proj", "self_attn.q_norm", *norms, *keys, "self_attn.o_proj"]
