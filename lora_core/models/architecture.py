"""The decoder that a `config.json` describes: every field that changes the mathematics is honoured or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import attrs

from lora_core.errors import Problem
from lora_core.intake.limits import LAYERS, raised
from lora_core.models.experts import Experts, read_experts
from lora_core.models.families import ModelFamily
from lora_core.models.layer_kinds import LayerKind, read_kinds
from lora_core.models.layer_sizes import sized
from lora_core.models.rope import Rope, read_rope, read_ropes
from lora_core.models.sizes import is_size, not_a_size

Activation = Literal["silu", "gelu_tanh", "gelu"]
_ACTIVATIONS: Mapping[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
}
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@attrs.frozen(kw_only=True)
class DeltaSizes:
    """Sizes of layers that keep a state by the gated delta rule; `taps` is the length of their convolution."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    taps: int

    @property
    def channels(self) -> int:
        """Queries, keys and values together."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@attrs.frozen(kw_only=True)
class LayerInputs:
    """A vector of `width` values that each block gets of each token: of a table with `rows` for all blocks, and of the
    token's embedding.
    """

    width: int
    rows: int


@attrs.frozen(kw_only=True)
class Architecture:
    """What is needed to build the module and to know which tensors the checkpoint must hold.

    `kinds` has an entry for each block, and sizes that differ from block to block; `head_dim`, `kv_heads` and
    `hidden_dim` are those of the others. `local_rope` is that of blocks whose positions are local. `o_bias`, `qkv_bias`
    and `mlp_bias` say which linear layers have a bias, `tied` that the output head is the embedding. Embeddings are
    multiplied by `embedding_scale`, what a block adds to the stream by `residual_scale`, scores by `attention_scale`,
    logits divided by `logit_divisor`; a softcap s turns x into s * tanh(x / s). A
    convolution sums `taps` tokens. For the rest see `ModelFamily`.
    """

    family: str
    dim: int
    hidden_dim: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope: Rope
    context_len: int
    kinds: tuple[LayerKind, ...]
    local_rope: Rope | None = None
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    activation: Activation = "silu"
    norms: Literal["before", "around", "after"] = "before"
    norm_offset: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    fused: bool = False
    attention_scale: float
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    taps: int = 0
    conv_bias: bool = False
    delta: DeltaSizes | None = None
    gated_queries: bool = False
    value_norm: bool = False
    layer_scale: bool = False
    layer_inputs: LayerInputs | None = None
    experts: Experts | None = None
    names: Mapping[str, str] = attrs.field(factory=dict)
    definition: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def window(self) -> int | None:
        """The shortest sliding attention window in tokens: up to it, every block sees the whole context."""
        return min((kind.window for kind in self.kinds if kind.window is not None), default=None)

    def window_of(self, kind: LayerKind, context_len: int) -> int | None:
        """Return the window of a block of `kind` if it hides anything of `context_len` tokens."""
        return kind.window if kind.window is not None and kind.window < context_len else None

    def head_dim_of(self, kind: LayerKind) -> int:
        """Return the width of a head in a block of `kind`."""
        return self.head_dim if kind.head_dim is None else kind.head_dim

    def kv_heads_of(self, kind: LayerKind) -> int:
        """Return the number of heads of keys and values in a block of `kind`."""
        return self.kv_heads if kind.kv_heads is None else kind.kv_heads

    def hidden_dim_of(self, kind: LayerKind) -> int:
        """Return the width of the MLP in a block of `kind`."""
        return self.hidden_dim if kind.hidden_dim is None else kind.hidden_dim

    def rotary_dim(self, positions: Literal["global", "local"]) -> int:
        """Return the width of a head where blocks have these `positions`."""
        return next((self.head_dim_of(kind) for kind in self.kinds if kind.positions == positions), self.head_dim)

    @property
    def keeps_state(self) -> bool:
        """Whether blocks keep more than keys and values: what was fed cannot be taken back."""
        return any(kind.mixes != "attention" for kind in self.kinds)

    @property
    def expert_values(self) -> int:
        """The number of values that all experts have together."""
        blocks = sum(kind.experts for kind in self.kinds)
        return 0 if self.experts is None else 3 * blocks * self.experts.count * self.experts.hidden_dim * self.dim

    @property
    def beyond_llama(self) -> tuple[str, ...]:
        """What it has that Llama does not, in words, apart from windows; biases and normalized heads do not count."""
        found = {
            f"{self.activation.replace('_', ' ')} activation": self.activation != "silu",
            f"norms {self.norms} attention and MLP": self.norms != "before",
            "queries and keys normalized as a whole": self.qk_norm and self.qk_norm_whole,
            "fused layers": self.fused,
            "rotary embeddings of two kinds": self.local_rope is not None,
            "layers without positions": any(kind.positions == "none" for kind in self.kinds),
            "partly rotated heads": self.rope.part != 1.0 and self.rope.kind != "proportional",
            "proportional rotary embeddings": self.rope.kind == "proportional",
            "LongRoPE": self.rope.kind == "longrope",
            "multipliers": (self.embedding_scale, self.residual_scale, self.logit_divisor) != (1.0, 1.0, 1.0)
            or self.attention_scale != self.head_dim**-0.5,
            "convolutions": any(kind.mixes == "convolution" for kind in self.kinds),
            "gated delta rule": self.delta is not None,
            "gated queries": self.gated_queries,
            "normalized values": self.value_norm,
            "heads of several widths": any(kind.head_dim or kind.kv_heads for kind in self.kinds),
            "values that are keys": any(kind.values_are_keys for kind in self.kinds),
            "keys and values that several layers share": any(kind.borrows for kind in self.kinds),
            "embeddings for each layer": self.layer_inputs is not None,
            "layers with a scale": self.layer_scale,
            "experts": self.experts is not None,
            "soft caps": self.attention_softcap is not None or self.logit_softcap is not None,
        }
        return tuple(words for words, there in found.items() if there)


def read_architecture(
    config: Mapping[str, Any], family: ModelFamily, where: str
) -> tuple[Architecture | None, list[Problem]]:
    """Return the architecture that `config` describes for `family`, or None and everything that stands against it."""
    config = _llama_fields({**family.defaults, **config}, family)
    wrong_sizes = _check_sizes(config, where) + _check_layers(config, where)
    problems = wrong_sizes + _check_refused(config, family, where)
    countable = isinstance(config.get("num_hidden_layers"), int) and not _check_layers(config, where)
    kinds, kind_problems = read_kinds(config, family, where) if countable else ((), [])
    context_len = config.get("max_position_embeddings")
    if family.own_sizes and not (kind_problems or wrong_sizes):
        kinds, kind_problems = sized(kinds, config, where)
    experts = None
    if family.experts and kinds and not kind_problems:
        kinds, experts, kind_problems = read_experts(kinds, config, where)
    problems += kind_problems
    if not is_size(context_len):
        problems.append(not_a_size("max_position_embeddings", context_len, where))
        context_len = 1
    head_dim = 0 if wrong_sizes else config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    local: Rope | None = None
    if family.local_theta is None:
        rope, rope_problems = read_rope(config, context_len, where, head_dim=head_dim, partial=family.partial_rotary)
    else:
        rope, local, rope_problems = read_ropes(
            config,
            context_len,
            where,
            head_dim=next((each.head_dim for each in kinds if each.positions == "global" and each.head_dim), head_dim),
            local_head_dim=head_dim,
            local_theta=family.local_theta,
        )
    factors, factor_problems = _read_factors(config, family, head_dim or 1, where)
    delta, delta_problems = _read_delta(config, family, where)
    layer_inputs, input_problems = _read_layer_inputs(config, family, where)
    problems += rope_problems + factor_problems + delta_problems + input_problems
    taps = config.get("conv_L_cache")
    if family.convolutions and (not isinstance(taps, int) or taps < 2):
        problems.append(Problem(what=f"conv_L_cache is {taps!r}; it must be 2 or more", where=f"{where}: conv_L_cache"))
    if problems:
        return None, problems
    bias = family.attention_bias == "config" and bool(config.get("attention_bias"))
    return Architecture(
        family=family.name,
        dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        kv_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
        head_dim=head_dim,
        vocab_size=config["vocab_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope=rope,
        local_rope=local,
        # Beyond, transformers changes the frequencies of a text while it grows, which no table of positions can.
        context_len=min(context_len, rope.original_context_len) if rope.kind == "longrope" else context_len,
        kinds=kinds,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bias or family.attention_bias == "qkv",
        o_bias=bias,
        mlp_bias=family.mlp_bias and bool(config.get("mlp_bias")),
        activation=_activation(config, family),
        norms=family.norms,
        norm_offset=family.norm_offset,
        qk_norm=family.qk_norm,
        qk_norm_whole=family.qk_norm_whole,
        fused=family.fused,
        **factors,
        taps=int(config["conv_L_cache"]) if family.convolutions else 0,
        conv_bias=family.convolutions and bool(config.get("conv_bias")),
        delta=delta,
        gated_queries=family.gated_queries,
        value_norm=family.value_norm,
        layer_scale=family.layer_scale,
        layer_inputs=layer_inputs,
        experts=experts,
        names=family.names,
        definition=family.definition,
    ), []


_DELTA = {
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_dim": "linear_key_head_dim",
    "value_dim": "linear_value_head_dim",
    "taps": "linear_conv_kernel_dim",
}


def _read_delta(config: Mapping[str, Any], family: ModelFamily, where: str) -> tuple[DeltaSizes | None, list[Problem]]:
    if not family.delta:
        return None, []
    sizes = {name: config.get(field) for name, field in _DELTA.items()}
    wrong = [name for name, size in sizes.items() if not is_size(size)]
    if wrong:
        return None, [not_a_size(_DELTA[name], sizes[name], where) for name in wrong]
    found = DeltaSizes(**sizes)  # type: ignore[arg-type]  # checked just before
    if found.value_heads % found.key_heads:
        what = f"linear_num_value_heads ({found.value_heads}) is not a multiple of {found.key_heads} key heads"
        return None, [Problem(what=what, where=f"{where}: linear_num_key_heads")]
    return found, []


def _read_layer_inputs(
    config: Mapping[str, Any], family: ModelFamily, where: str
) -> tuple[LayerInputs | None, list[Problem]]:
    if not family.layer_inputs or not config.get("hidden_size_per_layer_input"):
        return None, []
    sizes = {name: config.get(name) for name in ("hidden_size_per_layer_input", "vocab_size_per_layer_input")}
    width, rows = sizes.values()
    if not is_size(width) or not is_size(rows):
        return None, [not_a_size(name, size, where) for name, size in sizes.items() if not is_size(size)]
    if is_size(config.get("vocab_size")) and rows < config["vocab_size"]:
        what = f"vocab_size_per_layer_input ({rows}) is less than vocab_size ({config['vocab_size']})"
        return None, [Problem(what=what, where=f"{where}: vocab_size_per_layer_input")]
    return LayerInputs(width=width, rows=rows), []


def _llama_fields(config: Mapping[str, Any], family: ModelFamily) -> dict[str, Any]:
    """Return `config` with what `family` calls otherwise under Llama's names."""
    if config.get("rope_parameters") is None and "rope_parameters" in family.defaults:
        config = {**config, "rope_parameters": family.defaults["rope_parameters"]}
    own = {name: config[field] for name, field in family.fields.items() if config.get(field) is not None}
    found = {**config, **own}
    inner = found.get("intermediate_size")
    if family.rounded_mlp and found.get("block_auto_adjust_ff_dim") and isinstance(inner, int):
        # As transformers' Lfm2MLP has it.
        inner = int((found.get("block_ffn_dim_multiplier") or 1.0) * int(2 * inner / 3))
        multiple = found["block_multiple_of"]
        found["intermediate_size"] = multiple * -(-inner // multiple)
    return found


def _read_factors(
    config: Mapping[str, Any], family: ModelFamily, head_dim: int, where: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the numbers that `family` has fields for, by their names in `Architecture`; a field that is null is not
    there.
    """
    fields = {name: config.get(field) for name, field in family.factors.items()}
    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    wrong = [name for name, value in given.items() if not isinstance(value, int | float) or value <= 0]
    if wrong:
        named = [family.factors[name] for name in wrong]
        return {}, [Problem(what=f"{each} must be a positive number", where=f"{where}: {each}") for each in named]
    found = {name: float(value) for name, value in given.items()}
    scalar = found.pop("query_scalar", head_dim)
    found.setdefault("attention_scale", scalar**-0.5 if family.attention_scale is None else family.attention_scale)
    if family.root_scaled_embedding and isinstance(config.get("hidden_size"), int):
        found["embedding_scale"] = config["hidden_size"] ** 0.5
    return found, []


def _activation(config: Mapping[str, Any], family: ModelFamily) -> Activation:
    named = _ACTIVATIONS[config.get(family.activation) or "silu"]
    return "gelu_tanh" if family.tanh_gelu and named == "gelu" else named


def _check_layers(config: Mapping[str, Any], where: str) -> list[Problem]:
    """Refuse more layers than any model has: each becomes names, shapes and problems of its own."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or layers <= raised(LAYERS):
        return []
    what = f"num_hidden_layers is {layers}, and no model has more than {raised(LAYERS)}"
    return [Problem(what=what, where=f"{where}: num_hidden_layers")]


def _check_sizes(config: Mapping[str, Any], where: str) -> list[Problem]:
    optional = [name for name in ("num_key_value_heads", "head_dim") if config.get(name) is not None]
    wrong = [name for name in (*_SIZES, *optional) if not is_size(config.get(name))]
    if wrong:
        return [not_a_size(name, config.get(name), where) for name in wrong]
    problems = []
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads") or 0
    if kv_heads and heads % kv_heads:
        what = f"num_attention_heads ({heads}) is not a multiple of num_key_value_heads ({kv_heads})"
        problems.append(Problem(what=what, where=f"{where}: num_key_value_heads"))
    if not config.get("head_dim") and config["hidden_size"] % heads:
        what = f"hidden_size ({config['hidden_size']}) is not a multiple of num_attention_heads ({heads})"
        problems.append(Problem(what=what, where=f"{where}: hidden_size"))
    elif (config.get("head_dim") or config["hidden_size"] // heads) % 2:
        problems.append(Problem(what="Rotary embeddings need an even head_dim", where=f"{where}: head_dim"))
    if not isinstance(config.get("rms_norm_eps"), int | float):
        problems.append(Problem(what="rms_norm_eps must be a number", where=f"{where}: rms_norm_eps"))
    return problems


def _check_refused(config: Mapping[str, Any], family: ModelFamily, where: str) -> list[Problem]:
    problems = []
    activation = config.get(family.activation) or "silu"
    if activation not in _ACTIVATIONS:
        problems.append(
            Problem(
                what=f"Activation {activation!r} is not supported. Supported: {', '.join(_ACTIVATIONS)}",
                where=f"{where}: {family.activation}",
            )
        )
    if config.get("enable_moe_block"):
        what = "Blocks of experts beside the MLP (enable_moe_block) are not supported"
        problems.append(Problem(what=what, where=f"{where}: enable_moe_block"))
    # With "vision" tokens of an image look ahead, and no text does.
    if config.get("use_bidirectional_attention") not in (None, False, "vision"):
        what = "Attention that looks ahead (use_bidirectional_attention) is not supported"
        problems.append(Problem(what=what, where=f"{where}: use_bidirectional_attention"))
    if config.get("quantization_config"):
        method = dict(config["quantization_config"]).get("quant_method", "unknown")
        problems.append(
            Problem(
                what=f"The checkpoint is already quantized ({method})",
                where=f"{where}: quantization_config",
                remedy="Give the float32, float16 or bfloat16 checkpoint and choose a policy with --policy.",
            )
        )
    return problems
