"""A model of exactly Qwen3-0.6B's shape with random weights, and a random adapter: memory does not depend on them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "max_position_embeddings": 40960,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
RANK = 16
Shape = tuple[int, ...]


def linears(layers: int) -> Iterator[tuple[str, Shape]]:
    """Yield name and shape (out, in) of every linear layer of the blocks."""
    for layer in range(layers):
        for name, shape in (
            ("self_attn.q_proj", (2048, 1024)),
            ("self_attn.k_proj", (1024, 1024)),
            ("self_attn.v_proj", (1024, 1024)),
            ("self_attn.o_proj", (1024, 2048)),
            ("mlp.gate_proj", (3072, 1024)),
            ("mlp.up_proj", (3072, 1024)),
            ("mlp.down_proj", (1024, 3072)),
        ):
            yield f"model.layers.{layer}.{name}", shape


def write_model(directory: Path, layers: int) -> Path:
    """Write a Hugging Face directory with `layers` blocks, unless it is there; return it."""
    if (directory / "config.json").is_file():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    tensors = {"model.embed_tokens.weight": _random(generator, (151936, 1024))}
    for name, shape in linears(layers):
        tensors[f"{name}.weight"] = _random(generator, shape)
    for layer in range(layers):
        for name, width in (
            ("input_layernorm", 1024),
            ("post_attention_layernorm", 1024),
            ("self_attn.q_norm", 128),
            ("self_attn.k_norm", 128),
        ):
            tensors[f"model.layers.{layer}.{name}.weight"] = 1 + _random(generator, (width,))
    tensors["model.norm.weight"] = 1 + _random(generator, (1024,))
    save_file(tensors, directory / "model.safetensors")
    # Last: its presence says that the directory is whole.
    (directory / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}), "utf-8")
    return directory


def write_adapter(directory: Path, layers: int, *, seed: int = 1) -> int:
    """Write a PEFT directory with a rank-16 LoRA on all linear layers, unless it is there; return its matrices' bytes.

    It is not written again: an export that goes on meanwhile refuses an adapter that changes under it.
    """
    size = sum(4 * RANK * sum(shape) for _, shape in linears(layers))
    if (directory / "adapter_config.json").is_file():
        return size
    generator = np.random.default_rng(seed)
    tensors = {}
    for name, (out_features, in_features) in linears(layers):
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = _random(generator, (RANK, in_features))
        tensors[f"{prefix}.lora_B.weight"] = _random(generator, (out_features, RANK))
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name, _ in linears(1)})
    fields = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(fields), "utf-8")
    return size


def _random(generator: np.random.Generator, shape: Shape) -> npt.NDArray[np.float32]:
    return generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
