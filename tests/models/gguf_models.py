"""Tiny checkpoints written as GGUF by the `gguf` package, arranged as llama.cpp's convert_hf_to_gguf.py does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

Kind = gguf.GGMLQuantizationType
INTERLEAVED = ("llama", "smollm3", "granite")
OFFSET = ("gemma", "gemma2", "gemma3")
TOKENIZER = {"bos_token_id": 1, "eos_token_id": 2}


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of the converter."""
    return rows.reshape(heads, 2, len(rows) // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def write_model(
    path: Path,
    checkpoint: Path,
    architecture: str,
    told: Mapping[str, Any],
    *,
    kind: Kind = Kind.F32,
    more: Mapping[str, np.ndarray] | None = None,
    tokenizer: bool = False,
    left_out: str = "",
) -> Path:
    """Write `checkpoint` as GGUF, its matrices of `kind`, with `told` beside the metadata that every model has."""
    config = json.loads((checkpoint / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name("tiny")
    common = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "vocab_size": config["vocab_size"],
    }
    for key, value in {**common, **told}.items():
        _add(writer, f"{architecture}.{key}", value)
    for name, value in TOKENIZER.items():
        writer.add_uint32(f"tokenizer.ggml.{name}", value)
    if tokenizer:
        _add_tokenizer(writer, config["vocab_size"])
    for name, values in _arranged(checkpoint, config, architecture).items():
        if name != left_out:
            whole = values.ndim == 2 and values.shape[1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
            chosen = kind if whole else Kind.F32
            writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_float32(key, value)


def _arranged(checkpoint: Path, config: Mapping[str, Any], architecture: str) -> dict[str, np.ndarray]:
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], config["num_hidden_layers"])
    found: dict[str, np.ndarray] = {}
    for name, values in load_file(checkpoint / "model.safetensors").items():
        module, _, last = name.rpartition(".")
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])
        if architecture in INTERLEAVED and heads is not None:
            values = interleaved(values, config[heads])
        if architecture in OFFSET and name.endswith("norm.weight"):
            values = values + np.float32(1)
        if module.endswith("conv.conv") and last == "weight":
            values = values.squeeze(1)
        found[f"{names.get_name(module)}.{last}"] = values
    return found


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte-level BPE of letters and a few merges, as GPT-2's are stored."""
    letters = [chr(code) for code in range(ord("A"), ord("A") + size - 8)]
    tokens = ["<unk>", "<s>", "</s>", *letters, "he", "ll", "hell", "\u0120", "\u0120he"]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.token_type", [3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_array("tokenizer.ggml.merges", ["h e", "l l", "he ll", "\u0120 he"])
    writer.add_string("tokenizer.chat_template", "{% for m in messages %}{{ m['content'] }}{% endfor %}")
