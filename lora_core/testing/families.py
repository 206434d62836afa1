"""Tiny random checkpoints of every family, and adapters on all linear layers: real files, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from lora_core.layers import ModelSummary
from lora_core.models import hf_names
from lora_core.models.architecture import read_architecture
from lora_core.models.supported_families import FAMILIES

_SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}
_LONG: Mapping[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.3, 2.0],
    "long_factor": [1.0, 2.1, 4.0],
    "partial_rotary_factor": 0.75,
}
TINY_FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 1},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "norm_topk_prob": True,
    },
    "gemma": {"hidden_act": "gelu"},
    "gemma2": {"sliding_window": 12, "query_pre_attn_scalar": 24},
    "gemma3": {"sliding_window": 12, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24},
    "gemma4": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "global_head_dim": 32,
        "sliding_window": 12,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    # transformers counts frequencies by the width of the stream, not by `head_dim`.
    "phi3": {"head_dim": 8, "rope_scaling": _LONG, "original_max_position_embeddings": 64, "tie_word_embeddings": True},
    "smollm3": {"no_rope_layer_interval": 2},
    "granite": {
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.3,
        "attention_multiplier": 0.11,
        "logits_scaling": 2.5,
    },
    "olmo2": {},
    "qwen3_5": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "partial_rotary_factor": 0.5,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False, "conv_bias": True},
}
"""By the name of a family, what its tiny configuration has beside the sizes: everything that sets the family apart."""

EXPORTED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "xnnpack": {
        "fp32": (
            "mistral",
            "qwen2",
            "qwen3",
            "qwen3_moe",
            "gemma",
            "gemma2",
            "gemma3",
            "gemma4",
            "phi3",
            "smollm3",
            "granite",
            "olmo2",
            "qwen3_5",
            "lfm2",
        ),
        "8da4w": ("gemma3", "gemma4", "phi3", "lfm2"),
    },
    "coreml": {"fp16": ("qwen3_moe", "gemma2", "gemma3", "gemma4", "phi3", "smollm3", "granite", "olmo2", "lfm2")},
}
"""By backend and policy, the families whose tiny models the plugin's tests export with adapters on all layers: they
require of a linked bundle the bytes of a full export, and that `verify` finds what transformers and peft compute.
"""


def tiny_config(family: str, **changes: Any) -> dict[str, Any]:
    """Return the `config.json` of a tiny model of two layers, or the fewest that have all kinds."""
    kind = next(each for each in FAMILIES if each.name == family)
    named = {"model_type": kind.model_types[0], "architectures": [kind.architectures[0]]}
    return {**_SIZES, "num_hidden_layers": 2, **named, **TINY_FAMILIES[family], **changes}


def write_tiny_family(directory: Path, family: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a tiny random checkpoint of `family` into `directory` and return it."""
    kind = next(each for each in FAMILIES if each.name == family)
    config = tiny_config(family, **changes)
    architecture, problems = read_architecture(config, kind, str(directory))
    assert architecture is not None, problems
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in hf_names.tensor_shapes(architecture).items():
        # Norms are near one, the rest small enough for attention to look at several tokens.
        middle, spread = (0.0, 0.2) if len(shape) > 1 or name.endswith(".bias") else (1.0 - kind.norm_offset, 0.3)
        tensors[name] = (middle + spread * random.standard_normal(shape)).astype(np.float32)
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def write_family_adapter(
    directory: Path, summary: ModelSummary, *, seed: int, rank: int = 2, alpha: float = 4.0, spread: float = 0.1
) -> Path:
    """Write a random adapter on every linear layer but the output head, as PEFT does; return `directory`."""
    random = np.random.default_rng(seed)
    tensors, targets = {}, []
    for layer in summary.layers:
        if layer.kind != "linear" or layer.is_output:
            continue
        targets.append(layer.name.rpartition(".")[2])
        for part, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
            values = (spread * random.standard_normal(shape)).astype(np.float32)
            tensors[f"base_model.model.{layer.name}.lora_{part}.weight"] = values
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha}
    directory.mkdir(parents=True)
    config |= {"target_modules": sorted(set(targets)), "inference_mode": True}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    return directory
