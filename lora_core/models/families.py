"""Model families as data: which configurations are theirs and which parts of the common decoder they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from lora_core.errors import Problem
from lora_core.models.unsupported_families import REASONS


@attrs.frozen(kw_only=True)
class ModelFamily:
    """A family of decoders: blocks of grouped-query attention and a gated MLP, under the tensor names that Llama uses
    in Hugging Face checkpoints.

    `model_types` and `architectures` are the values of `config.json` that select it. `defaults` are the values of
    fields that `config.json` may leave out, as transformers' configuration class has them. `attention_bias`: `qkv`
    (always, on q, k and v), `config` (the field `attention_bias`, on q, k, v and o) or `never`. `mlp_bias` says
    whether the field `mlp_bias` counts, `activation` which field names the MLP's, `tanh_gelu` that by `gelu` it means
    the approximation.

    `norms` are `before` attention and MLP, `after` them (before they are added to the stream), or both: `around`.
    `norm_offset` says that a norm multiplies by one more than what is stored. `qk_norm` says whether queries and keys
    are normalized before rotation, each head or, with `qk_norm_whole`, all heads as one vector. `fused` says that q, k
    and v are one layer (`qkv_proj`), and gate and up another (`gate_up_proj`).

    `sliding_window`: the field counts for `all` layers, `by_layer` (with `use_sliding_window`, and `layer_types` or
    `max_window_layers`), `by_type` (`layer_types`, else all but every `sliding_window_pattern`-th) or `never`.
    `local_theta` is the rotary base of layers with a window where they have one of their own. `no_rope` says that
    `no_rope_layers`, or every `no_rope_layer_interval`-th, are not rotated; `partial_rotary` that the field
    `partial_rotary_factor` counts.

    `convolutions` says that layers of type `conv` mix neighbouring tokens instead of attending, `delta` that those of
    type `linear_attention` (all but every `full_attention_interval`-th) keep a state by the gated delta rule, and
    `gated_queries` that attention is gated by a second half of each query. `names` are the
    family's own names of modules in a block, by Llama's, and `fields` its own names of fields, by Llama's;
    `rounded_mlp` says that the MLP's width is made of the field's as Liquid's models do.

    `root_scaled_embedding` says that embeddings are multiplied by the root of their width. `factors` name the fields
    that hold further numbers, by their names in `Architecture`. `definition` holds what the decoder's definition is
    told besides (`lora_core.models.executorch` hands it to ExecuTorch's `ModelArgs`).
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    attention_bias: Literal["never", "config", "qkv"] = "never"
    mlp_bias: bool = False
    activation: str = "hidden_act"
    tanh_gelu: bool = False
    norms: Literal["before", "around", "after"] = "before"
    norm_offset: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    fused: bool = False
    sliding_window: Literal["never", "all", "by_layer", "by_type"] = "never"
    local_theta: float | None = None
    no_rope: bool = False
    partial_rotary: bool = False
    convolutions: bool = False
    delta: bool = False
    gated_queries: bool = False
    names: Mapping[str, str] = attrs.field(factory=dict)
    fields: Mapping[str, str] = attrs.field(factory=dict)
    rounded_mlp: bool = False
    root_scaled_embedding: bool = False
    factors: Mapping[str, str] = attrs.field(factory=dict)
    definition: Mapping[str, Any] = attrs.field(factory=dict)


_GEMMA: dict[str, Any] = {
    "vocab_size": 256000,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GEMMA_FACTORS = {
    "query_scalar": "query_pre_attn_scalar",
    "attention_softcap": "attn_logit_softcapping",
    "logit_softcap": "final_logit_softcapping",
}

FAMILIES: tuple[ModelFamily, ...] = (
    ModelFamily(
        name="llama",
        model_types=("llama",),
        architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
        defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
        attention_bias="config",
        mlp_bias=True,
    ),
    ModelFamily(
        name="mistral",
        model_types=("mistral",),
        architectures=("MistralForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        sliding_window="all",
    ),
    ModelFamily(
        name="qwen2",
        model_types=("qwen2",),
        architectures=("Qwen2ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        attention_bias="qkv",
        sliding_window="by_layer",
    ),
    ModelFamily(
        name="qwen3",
        model_types=("qwen3",),
        architectures=("Qwen3ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "sliding_window": 4096,
            "max_window_layers": 28,
        },
        attention_bias="config",
        qk_norm=True,
        sliding_window="by_layer",
    ),
    ModelFamily(
        name="gemma",
        model_types=("gemma",),
        architectures=("GemmaForCausalLM",),
        defaults={
            "num_key_value_heads": 16,
            "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh",
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "bos_token_id": 2,
            "eos_token_id": 1,
        },
        attention_bias="config",
        tanh_gelu=True,
        norm_offset=True,
        root_scaled_embedding=True,
    ),
    ModelFamily(
        name="gemma2",
        model_types=("gemma2",),
        architectures=("Gemma2ForCausalLM",),
        defaults={
            **_GEMMA,
            "sliding_window_pattern": 2,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
        },
        attention_bias="config",
        activation="hidden_activation",
        norms="around",
        norm_offset=True,
        sliding_window="by_type",
        root_scaled_embedding=True,
        factors=_GEMMA_FACTORS,
    ),
    ModelFamily(
        name="gemma3",
        model_types=("gemma3_text",),
        architectures=("Gemma3ForCausalLM",),
        defaults={
            **_GEMMA,
            "vocab_size": 262208,
            "max_position_embeddings": 131072,
            "sliding_window_pattern": 6,
            "rope_theta": 1000000.0,
        },
        attention_bias="config",
        activation="hidden_activation",
        norms="around",
        norm_offset=True,
        qk_norm=True,
        sliding_window="by_type",
        local_theta=10000.0,
        root_scaled_embedding=True,
        factors=_GEMMA_FACTORS,
    ),
    ModelFamily(
        name="phi3",
        model_types=("phi3",),
        architectures=("Phi3ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 32000,
        },
        fused=True,
        sliding_window="all",
        partial_rotary=True,
    ),
    ModelFamily(
        name="smollm3",
        model_types=("smollm3",),
        architectures=("SmolLM3ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "rope_theta": 2000000.0,
            "no_rope_layer_interval": 4,
            "tie_word_embeddings": True,
            "bos_token_id": 128000,
            "eos_token_id": 128001,
        },
        attention_bias="config",
        mlp_bias=True,
        sliding_window="by_layer",
        no_rope=True,
    ),
    ModelFamily(
        name="granite",
        model_types=("granite",),
        architectures=("GraniteForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 2048,
            "embedding_multiplier": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
            "logits_scaling": 1.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        attention_bias="config",
        mlp_bias=True,
        factors={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention_scale": "attention_multiplier",
            "logit_divisor": "logits_scaling",
        },
    ),
    ModelFamily(
        name="olmo2",
        model_types=("olmo2",),
        architectures=("Olmo2ForCausalLM",),
        defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "eos_token_id": 50279},
        attention_bias="config",
        norms="after",
        qk_norm=True,
        qk_norm_whole=True,
    ),
    ModelFamily(
        name="lfm2",
        model_types=("lfm2",),
        architectures=("Lfm2ForCausalLM",),
        defaults={
            "norm_eps": 1e-5,
            "max_position_embeddings": 128000,
            "num_key_value_heads": 8,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "conv_L_cache": 3,
            "block_auto_adjust_ff_dim": True,
            "block_multiple_of": 256,
            "block_ffn_dim_multiplier": 1.0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        qk_norm=True,
        convolutions=True,
        names={
            "self_attn.o_proj": "self_attn.out_proj",
            "self_attn.q_norm": "self_attn.q_layernorm",
            "self_attn.k_norm": "self_attn.k_layernorm",
            "mlp": "feed_forward",
            "mlp.gate_proj": "feed_forward.w1",
            "mlp.up_proj": "feed_forward.w3",
            "mlp.down_proj": "feed_forward.w2",
            "input_layernorm": "operator_norm",
            "post_attention_layernorm": "ffn_norm",
            "model.norm": "model.embedding_norm",
        },
        fields={
            "rms_norm_eps": "norm_eps",
            "intermediate_size": "block_ff_dim",
            "tie_word_embeddings": "tie_embedding",
        },
        rounded_mlp=True,
    ),
    ModelFamily(
        name="qwen3_5",
        model_types=("qwen3_5_text",),
        architectures=("Qwen3_5ForCausalLM",),
        defaults={
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "partial_rotary_factor": 0.25,
            "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
        },
        attention_bias="config",
        norm_offset=True,
        qk_norm=True,
        partial_rotary=True,
        delta=True,
        gated_queries=True,
    ),
)


def find_family(
    config: Mapping[str, Any], families: Sequence[ModelFamily], where: str
) -> tuple[ModelFamily | None, list[Problem]]:
    """Return the family of `config`, or None and why, listing those that are supported."""
    model_type = config.get("model_type")
    family = next((family for family in families if model_type in family.model_types), None)
    if family is None:
        said = f"Model type {model_type!r} is not supported" if model_type else "The configuration has no model_type"
        said += f": {REASONS[str(model_type)]}" if model_type in REASONS else ""
        return None, [Problem(what=f"{said}. {supported(families)}", where=f"{where}: model_type")]
    architectures = config.get("architectures") or ()
    if architectures and not set(architectures) & set(family.architectures):
        problem = Problem(
            what=f"Architecture {', '.join(map(str, architectures))} is not supported. {supported(families)}",
            where=f"{where}: architectures",
        )
        return None, [problem]
    return family, []


def supported(families: Sequence[ModelFamily]) -> str:
    """Say which architectures `families` can load."""
    names = ", ".join(family.architectures[0] for family in families)
    return f"Supported: Hugging Face checkpoints (config.json with safetensors) of {names}."
