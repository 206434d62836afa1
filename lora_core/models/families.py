"""What a model family is, and which one a configuration is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from lora_core.errors import Problem
from lora_core.models.unsupported_families import REASONS
from lora_core.moved import missing


@attrs.frozen(kw_only=True)
class ModelFamily:
    """A family of decoders: blocks of grouped-query attention and a gated MLP, under the tensor names that Llama uses
    in Hugging Face checkpoints.

    `model_types` and `architectures` are the values of `config.json` that select it. `defaults` are the values of
    fields that `config.json` may leave out, as transformers' configuration class has them, `sizes` those that it leaves
    out only as a part of another model's. `attention_bias`: `qkv`
    (always, on q, k and v), `config` (the field `attention_bias`, on q, k, v and o) or `never`. `mlp_bias` says
    whether the field `mlp_bias` counts, `activation` which field names the MLP's, `tanh_gelu` that by `gelu` it means
    the approximation.

    `norms` are `before` attention and MLP, `after` them (before they are added to the stream), or both: `around`.
    `norm_offset` says that a norm multiplies by one more than what is stored. `qk_norm` says whether queries and keys
    are normalized before rotation, each head or, with `qk_norm_whole`, all heads as one vector. `fused` says that q, k
    and v are one layer (`qkv_proj`), and gate and up another (`gate_up_proj`).

    `sliding_window`: the field counts for `all` layers, `if_used` for all with `use_sliding_window`, `by_layer` (with
    `use_sliding_window`, and `layer_types` or `max_window_layers`), `by_type` (`layer_types`, else all but every
    `sliding_window_pattern`-th) or `never`.
    `local_theta` is the rotary base of layers with a window where they have one of their own. `no_rope` says that
    `no_rope_layers`, or every `no_rope_layer_interval`-th, are not rotated; `partial_rotary` that the field
    `partial_rotary_factor` counts.

    `convolutions` says that layers of type `conv` mix neighbouring tokens instead of attending, `delta` that those of
    type `linear_attention` (all but every `full_attention_interval`-th) keep a state by the gated delta rule, and
    `gated_queries` that attention is gated by a second half of each query. `names` are the
    family's own names of modules in a block, by Llama's, and `fields` its own names of fields, by Llama's;
    `rounded_mlp` says that the MLP's width is made of the field's as Liquid's models do.

    `own_sizes` says that blocks may have sizes of their own and keys and values of another, and `layer_inputs` that
    they may get an embedding of each token for themselves, both as Gemma 4's fields have it. `last_attends_fully` says
    that the last block has no window whatever `layer_types` says, `value_norm` that values are normalized too,
    `layer_scale` that each block's result is multiplied by a number of its own.

    `experts` says that blocks have experts in place of the MLP, as Qwen3-MoE's fields have it.

    `root_scaled_embedding` says that embeddings are multiplied by the root of their width. `attention_scale` is what
    scores are multiplied by where it does not depend on the width of heads, and `factors` name the fields
    that hold further numbers, by their names in `Architecture`. `definition` holds what the decoder's definition is
    told besides (`lora_core.models.executorch` hands it to ExecuTorch's `ModelArgs`).
    """

    name: str
    model_types: tuple[str, ...]
    architectures: tuple[str, ...]
    defaults: Mapping[str, Any] = attrs.field(factory=dict)
    sizes: Mapping[str, int] = attrs.field(factory=dict)
    attention_bias: Literal["never", "config", "qkv"] = "never"
    mlp_bias: bool = False
    activation: str = "hidden_act"
    tanh_gelu: bool = False
    norms: Literal["before", "around", "after"] = "before"
    norm_offset: bool = False
    qk_norm: bool = False
    qk_norm_whole: bool = False
    fused: bool = False
    sliding_window: Literal["never", "all", "if_used", "by_layer", "by_type"] = "never"
    local_theta: float | None = None
    no_rope: bool = False
    partial_rotary: bool = False
    convolutions: bool = False
    delta: bool = False
    gated_queries: bool = False
    names: Mapping[str, str] = attrs.field(factory=dict)
    fields: Mapping[str, str] = attrs.field(factory=dict)
    rounded_mlp: bool = False
    own_sizes: bool = False
    layer_inputs: bool = False
    last_attends_fully: bool = False
    value_norm: bool = False
    layer_scale: bool = False
    experts: bool = False
    root_scaled_embedding: bool = False
    attention_scale: float | None = None
    factors: Mapping[str, str] = attrs.field(factory=dict)
    definition: Mapping[str, Any] = attrs.field(factory=dict)


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


def __getattr__(name: str) -> object:
    raise missing(__name__, name)
