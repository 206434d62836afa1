"""The decoder that a `config.json` describes: every field that changes the mathematics is honoured or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.errors import Problem
from lora_core.intake.limits import LAYERS, raised
from lora_core.models.families import ModelFamily
from lora_core.models.rope import Rope, read_rope

_SILU = ("silu", "swish")
_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@attrs.frozen(kw_only=True)
class Architecture:
    """What is needed to build the module and to know which tensors the checkpoint must hold.

    `window` is the sliding attention window in tokens: no context longer than it is exact. `o_bias`, `qkv_bias` and
    `mlp_bias` say which linear layers have a bias, `tied` that the output head is the embedding.
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
    tied: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    window: int | None = None
    definition: Mapping[str, Any] = attrs.field(factory=dict)


def read_architecture(
    config: Mapping[str, Any], family: ModelFamily, where: str
) -> tuple[Architecture | None, list[Problem]]:
    """Return the architecture that `config` describes for `family`, or None and everything that stands against it."""
    config = {**family.defaults, **config}
    problems = _check_sizes(config, where)
    problems += _check_layers(config, where)
    problems += _check_refused(config, where)
    window, window_problems = _window(config, family, where)
    problems += window_problems
    context_len = config.get("max_position_embeddings")
    if not isinstance(context_len, int) or context_len < 1:
        problems.append(_not_a_size("max_position_embeddings", context_len, where))
        context_len = 1
    rope, rope_problems = read_rope(config, context_len, where)
    problems += rope_problems
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
        head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        vocab_size=config["vocab_size"],
        norm_eps=float(config["rms_norm_eps"]),
        rope=rope,
        context_len=context_len,
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bias or family.attention_bias == "qkv",
        o_bias=bias,
        mlp_bias=family.mlp_bias and bool(config.get("mlp_bias")),
        qk_norm=family.qk_norm,
        window=window,
        definition=family.definition,
    ), []


def _check_layers(config: Mapping[str, Any], where: str) -> list[Problem]:
    """Refuse more layers than any model has: each becomes names, shapes and problems of its own."""
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int) or layers <= raised(LAYERS):
        return []
    what = f"num_hidden_layers is {layers}, and no model has more than {raised(LAYERS)}"
    return [Problem(what=what, where=f"{where}: num_hidden_layers")]


def _not_a_size(field: str, value: object, where: str) -> Problem:
    said = "is missing" if value is None else f"is {value!r}"
    return Problem(what=f"{field} {said}; it must be a positive integer", where=f"{where}: {field}")


def _check_sizes(config: Mapping[str, Any], where: str) -> list[Problem]:
    optional = [name for name in ("num_key_value_heads", "head_dim") if config.get(name) is not None]
    wrong = [
        name
        for name in (*_SIZES, *optional)
        if not isinstance(config.get(name), int) or isinstance(config[name], bool) or config[name] < 1
    ]
    if wrong:
        return [_not_a_size(name, config.get(name), where) for name in wrong]
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


def _check_refused(config: Mapping[str, Any], where: str) -> list[Problem]:
    problems = []
    activation = config.get("hidden_act") or "silu"
    if activation not in _SILU:
        problems.append(
            Problem(
                what=f"Activation {activation!r} is not supported. Supported: {', '.join(_SILU)}",
                where=f"{where}: hidden_act",
            )
        )
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


def _window(config: Mapping[str, Any], family: ModelFamily, where: str) -> tuple[int | None, list[Problem]]:
    if family.sliding_window == "never":
        return None, []
    window = config.get("sliding_window")
    if family.sliding_window == "all":
        return window, []
    window = window if config.get("use_sliding_window") else None
    kinds = config.get("layer_types")
    if kinds is None:
        sliding = config.get("max_window_layers", 0) < config.get("num_hidden_layers", 0)
        return window if sliding else None, []
    strange = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if strange:
        what = f"Layers of type {', '.join(strange)} are not supported"
        return None, [Problem(what=what, where=f"{where}: layer_types")]
    return window if "sliding_attention" in kinds else None, []
