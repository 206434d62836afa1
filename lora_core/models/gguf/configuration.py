"""The `config.json` that a GGUF model's metadata stands for.

Keys: gguf-py/gguf/constants.py; what they mean is what llama.cpp's `llm_load_hparams` (src/llama-model.cpp) and
convert_hf_to_gguf.py make of them. A key of the model's architecture that is not known here is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np

from lora_core.adapters.gguf.container import GgufFile
from lora_core.errors import Problem


@attrs.frozen(kw_only=True)
class GgufArchitecture:
    """What llama.cpp calls an architecture, and which of its keys count beside those of all.

    `interleaved` says that rows of queries and keys are stored in llama.cpp's order, `offset` that norms are stored
    with the one that they multiply by besides. `fields` are keys and the fields of `config.json` that they stand for.
    """

    model_type: str
    interleaved: bool = False
    offset: bool = False
    fields: Mapping[str, str] = attrs.field(factory=dict)


_CAPS = {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"}
_WINDOW = {"attention.sliding_window": "sliding_window"}
ARCHITECTURES: Mapping[str, GgufArchitecture] = {
    "llama": GgufArchitecture(model_type="llama", interleaved=True),
    "qwen2": GgufArchitecture(model_type="qwen2"),
    "qwen3": GgufArchitecture(model_type="qwen3"),
    "gemma": GgufArchitecture(model_type="gemma", offset=True),
    "gemma2": GgufArchitecture(model_type="gemma2", offset=True, fields={**_CAPS, **_WINDOW}),
    "gemma3": GgufArchitecture(
        model_type="gemma3_text",
        offset=True,
        fields={
            **_CAPS,
            **_WINDOW,
            "attention.sliding_window_pattern": "sliding_window_pattern",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
    ),
    "phi3": GgufArchitecture(
        model_type="phi3",
        fields={**_WINDOW, "rope.scaling.original_context_length": "original_max_position_embeddings"},
    ),
    "smollm3": GgufArchitecture(model_type="smollm3", interleaved=True),
    "granite": GgufArchitecture(
        model_type="granite",
        interleaved=True,
        fields={
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "attention.scale": "attention_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
    "olmo2": GgufArchitecture(model_type="olmo2"),
    "lfm2": GgufArchitecture(model_type="lfm2", fields={"shortconv.l_cache": "conv_L_cache"}),
}
"""By `general.architecture`. llama.cpp converts Mistral to `llama`, without windows."""

_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
# Read below, or of no account: sizes that tensors tell, and what only llama.cpp's own YaRN would read.
_OTHERS = {
    "vocab_size",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_MOST_FACTORS = 1 << 16
"""Numbers of a rotary embedding's factors, one for two of a head."""
# Depths whose attention llama.cpp scales by the width for each head instead of the heads' own (27B of Gemma 2 and 3).
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}


def read_configuration(opened: GgufFile, where: str) -> tuple[dict[str, Any], list[Problem]]:
    """Return `config.json` as the model was converted from would have it, and what stands against reading it."""
    name = str(opened.metadata.get("general.architecture", ""))
    if name not in ARCHITECTURES:
        what = f"The GGUF architecture {name!r} is not read as a base. Read are {', '.join(ARCHITECTURES)}"
        return {}, [Problem(what=what, where=f"{where}: general.architecture")]
    architecture = ARCHITECTURES[name]
    keys = (key for key in opened.metadata if key.startswith(f"{name}."))
    told = {key.removeprefix(f"{name}."): _written(opened.metadata[key]) for key in keys}
    known = {**_FIELDS, **architecture.fields}
    problems = [_unknown(key, value, where) for key, value in told.items() if key not in known.keys() | _OTHERS]
    config = {known[key]: value for key, value in told.items() if key in known}
    config |= {"model_type": architecture.model_type, **_of_tensors(opened), **_ids(opened.metadata)}
    config |= _by_layer(config)
    rope, rope_problems = _rope(opened, told, config, where)
    problems += rope_problems + _heads(told, where)
    config |= {**rope, **_scaling(name, config)}
    return config, problems


def _written(value: Any) -> Any:
    """Return the number that was rounded to `value`, a float32: the shortest one, as `config.json` has it."""
    return float(str(np.float32(value))) if isinstance(value, float) and np.float32(value) == value else value


def _unknown(key: str, value: object, where: str) -> Problem:
    what = f"The metadata says {key} = {value!r}, which is not understood"
    return Problem(what=what, where=where, remedy="Export from the model's Hugging Face checkpoint.")


def _of_tensors(opened: GgufFile) -> dict[str, Any]:
    tensors = {tensor.name: tensor for tensor in opened.tensors}
    embedding = tensors.get("token_embd.weight")
    return {
        "vocab_size": None if embedding is None else embedding.shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": any(name.endswith("attn_output.bias") for name in tensors),
        "mlp_bias": any(name.endswith("ffn_down.bias") for name in tensors),
        "conv_bias": any(name.endswith("shortconv.conv.bias") for name in tensors),
    }


def _ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    found = {"bos_token_id": metadata.get("tokenizer.ggml.bos_token_id")}
    return {**found, "eos_token_id": list(dict.fromkeys(each for each in ends if each is not None)) or None}


def _by_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is told by layer as a configuration has it."""
    found: dict[str, Any] = {}
    heads, windows = config.get("num_key_value_heads"), config.get("sliding_window_pattern")
    if isinstance(heads, list):  # no heads: a convolution
        found["num_key_value_heads"] = max(heads, default=0)
        found["layer_types"] = ["full_attention" if each else "conv" for each in heads]
        found["block_auto_adjust_ff_dim"] = False
    if isinstance(windows, list):
        found["layer_types"] = ["sliding_attention" if each else "full_attention" for each in windows]
    if config["model_type"] == "lfm2":
        found["norm_eps"] = config.get("rms_norm_eps")
    return found


def _heads(told: Mapping[str, Any], where: str) -> list[Problem]:
    keys, values = (told.get(f"attention.{each}_length") for each in ("key", "value"))
    if keys == values or None in (keys, values):
        return []
    return [Problem(what=f"Keys of {keys} and values of {values} numbers a head are not supported", where=where)]


def _head_dim(config: Mapping[str, Any]) -> int:
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    whole = width // heads if isinstance(width, int) and isinstance(heads, int) and heads else 0
    return int(config.get("head_dim") or whole)


def _scaling(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    if name not in _SCALED_BY_WIDTH:
        return {}
    if config.get("num_hidden_layers") == _SCALED_BY_WIDTH[name]:
        return {"query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]}
    return {"query_pre_attn_scalar": _head_dim(config)}


def _rope(
    opened: GgufFile, told: Mapping[str, Any], config: Mapping[str, Any], where: str
) -> tuple[dict[str, Any], list[Problem]]:
    head_dim, turned = _head_dim(config), told.get("rope.dimension_count")
    found: dict[str, Any] = {}
    if turned is not None and head_dim and turned != head_dim:
        found["partial_rotary_factor"] = turned / head_dim
    kind = told.get("rope.scaling.type", "none")
    if kind == "yarn":
        what = "YaRN as llama.cpp stores and computes it is not read"
        return {}, [Problem(what=what, where=where, remedy="Export from the model's Hugging Face checkpoint.")]
    if kind not in ("none", "longrope"):  # what is not read is refused by its name, with the rest of the configuration
        found["rope_scaling"] = {"rope_type": kind, "factor": told.get("rope.scaling.factor")}
    factors = {
        tensor.name: [_written(each) for each in tensor.read().tolist()]
        for tensor in opened.tensors
        if tensor.name.startswith("rope_f") and tensor.dtype == "F32" and math.prod(tensor.shape) <= _MOST_FACTORS
    }
    long, short = (factors.get(f"rope_factors_{each}.weight") for each in ("long", "short"))
    if long is not None and short is not None:
        scaling = {"rope_type": "longrope", "long_factor": long, "short_factor": short}
        found["rope_scaling"] = scaling | {"attention_factor": told.get("rope.scaling.attn_factor")}
    if "rope_freqs.weight" in factors:
        return _llama3(factors["rope_freqs.weight"], config, head_dim, where)
    return found, []


def _llama3(
    factors: Sequence[float], config: Mapping[str, Any], head_dim: int, where: str
) -> tuple[dict[str, Any], list[Problem]]:
    """Return Llama 3's scaling if it is what divides the frequencies by `factors`: the file has them alone."""
    from lora_core.models.rope import DEFAULT_THETA, Rope

    theta = float(config.get("rope_theta") or DEFAULT_THETA)
    rope = Rope(
        theta=theta,
        kind="llama3",
        factor=max(factors),
        low_freq_factor=_LLAMA3["low_freq_factor"],
        high_freq_factor=_LLAMA3["high_freq_factor"],
        original_context_len=int(_LLAMA3["original_max_position_embeddings"]),
    )
    divisors = rope.divisors(head_dim) or []
    # Both are computed in float32 by others: four units of it.
    if len(divisors) == len(factors) and np.allclose(divisors, factors, rtol=5e-7, atol=0):
        return {"rope_scaling": {"rope_type": "llama3", "factor": max(factors), **_LLAMA3}}, []
    what = "The factors of its rotary embedding (rope_freqs.weight) are not those of Llama 3"
    return {}, [Problem(what=what, where=where, remedy="Export from the model's Hugging Face checkpoint.")]
