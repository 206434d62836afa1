"""Model families as data: which configurations are theirs and which parts of the common decoder they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from lora_core.errors import Problem


@attrs.frozen(kw_only=True)
class ModelFamily:
    """A family of decoders: pre-norm blocks of grouped-query attention and a gated SiLU MLP, under the tensor names
    that Llama uses in Hugging Face checkpoints.

    `model_types` and `architectures` are the values of `config.json` that select it. `defaults` are the values of
    fields that `config.json` may leave out, as transformers' configuration class has them. `attention_bias`: `qkv`
    (always, on q, k and v), `config` (the field `attention_bias`, on q, k, v and o) or `never`. `mlp_bias` says
    whether the field `mlp_bias` counts, `qk_norm` whether queries and keys are normalized per head before rotation.
    `sliding_window`: the field counts for `all` layers, `by_layer` (with `use_sliding_window`, `layer_types` or
    `max_window_layers`), or `never`. `definition` holds what the decoder's definition is told besides
    (`lora_core.models.executorch` hands it to ExecuTorch's `ModelArgs`).
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    attention_bias: Literal["never", "config", "qkv"] = "never"
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: Literal["never", "all", "by_layer"] = "never"
    definition: Mapping[str, Any] = attrs.field(factory=dict)


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
)


def find_family(
    config: Mapping[str, Any], families: Sequence[ModelFamily], where: str
) -> tuple[ModelFamily | None, list[Problem]]:
    """Return the family of `config`, or None and why, listing those that are supported."""
    model_type = config.get("model_type")
    family = next((family for family in families if model_type in family.model_types), None)
    if family is None:
        said = f"Model type {model_type!r} is not supported" if model_type else "The configuration has no model_type"
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
