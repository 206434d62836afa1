"""Tiny random checkpoints and adapters: real files in real formats, small enough to lower in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

Float32 = npt.NDArray[np.float32]

TINY_LLAMA: Mapping[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "float32",
}


def _random(generator: np.random.Generator, *shape: int, scale: float = 0.2) -> Float32:
    return (generator.standard_normal(shape, dtype=np.float32) * np.float32(scale)).astype(np.float32)


def linear_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return (out_features, in_features) of every linear layer of a Llama `config`, by Hugging Face name."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    key_value = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    block = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    layers = range(config["num_hidden_layers"])
    return {f"model.layers.{layer}.{name}": shape for layer in layers for name, shape in block.items()}


def write_tiny_checkpoint(
    directory: Path,
    *,
    seed: int = 0,
    scale: float = 0.2,
    embedding_scale: float = 1.0,
    config: Mapping[str, Any] = TINY_LLAMA,
) -> Path:
    """Write a random Llama checkpoint in Hugging Face layout into `directory` (made if missing) and return it.

    The scales are the standard deviations of linear weights and of the embedding.
    """
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    hidden = config["hidden_size"]
    tensors = {"model.embed_tokens.weight": _random(generator, config["vocab_size"], hidden, scale=embedding_scale)}
    for name, shape in linear_shapes(config).items():
        tensors[f"{name}.weight"] = _random(generator, *shape, scale=scale)
    for layer in range(config["num_hidden_layers"]):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = 1 + _random(generator, hidden, scale=0.1)
    tensors["model.norm.weight"] = 1 + _random(generator, hidden, scale=0.1)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = _random(generator, config["vocab_size"], hidden)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n", "utf-8")
    return directory


def write_tiny_adapter(
    directory: Path,
    *,
    seed: int,
    rank: int = 4,
    alpha: float = 8.0,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    zero: Sequence[str] = (),
    use_rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    config: Mapping[str, Any] = TINY_LLAMA,
) -> Path:
    """Write a random PEFT LoRA adapter for a checkpoint of `config` and return its directory.

    `zero` are module names (their last parts suffice) whose A and B are all zero. The patterns give layers whose names
    end so another rank or alpha, as PEFT reads them.
    """
    ranks = rank_pattern or {}
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    tensors: dict[str, Float32] = {}
    for name, (out_features, in_features) in linear_shapes(config).items():
        if name.rpartition(".")[2] not in targets:
            continue
        factor = np.float32(0.0 if any(name.endswith(part) for part in zero) else 1.0)
        prefix = f"base_model.model.{name}"
        own = next((ranks[end] for end in ranks if name.endswith(f".{end}")), rank)
        tensors[f"{prefix}.lora_A.weight"] = factor * _random(generator, own, in_features)
        tensors[f"{prefix}.lora_B.weight"] = factor * _random(generator, out_features, own)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    fields = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha, "bias": "none"}
    document = {**fields, "target_modules": sorted(targets), "base_model_name_or_path": None, "inference_mode": True}
    if use_rslora:
        document["use_rslora"] = True
    if rank_pattern or alpha_pattern:
        document |= {"rank_pattern": dict(ranks), "alpha_pattern": dict(alpha_pattern or {})}
    (directory / "adapter_config.json").write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return directory
