"""A Llama-like checkpoint and its adapters as the GGUF files that llama.cpp reads.

What llama.cpp's `convert_hf_to_gguf.py`, `convert_lora_to_gguf.py` and `llama-quantize --token-embedding-type q8_0`
write for such a model, by the `gguf` package: matrices in one type, vectors in float32, an embedding that is the head
too in 8 bits where matrices have 4, rows of queries and keys in llama.cpp's order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from lora_core.adapters.gguf.names import module_of, rotated_heads, row_order
from lora_core.adapters.peft.format import PeftFormat
from lora_core.models.base import ModelHandle
from lora_core.models.hf import HfModelSource

Array = Any
ARCHITECTURE = "llama"
TYPES = {kind.name.lower(): kind for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q4_0)}
COARSE = gguf.GGMLQuantizationType.Q4_0
OUTSIDE = ("token_embd", "output", "output_norm")
INSIDE = (
    *("attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm", "attn_norm"),
    *("ffn_gate", "ffn_up", "ffn_down", "ffn_norm"),
)
EMBEDDING = "model.embed_tokens.weight"


def write_model(model: Path, kind: str, out: Path) -> None:
    """Write the checkpoint `model` with matrices of `kind`, one of `TYPES`."""
    handle = HfModelSource().open(str(model))
    writer = gguf.GGUFWriter(out.with_suffix(".new"), ARCHITECTURE)
    _describe(writer, handle.summary.config)
    _tokenizer(writer, model, handle.summary.config)
    for name, matrix in _tensors(handle):
        chosen = TYPES[kind]
        if name == EMBEDDING and chosen is COARSE:
            chosen = gguf.GGMLQuantizationType.Q8_0
        if matrix.ndim == 1:
            chosen = gguf.GGMLQuantizationType.F32
        module, _, rest = name.rpartition(".")
        writer.add_tensor(f"{_peer_name(module)}.{rest}", gguf.quants.quantize(matrix, chosen), raw_dtype=chosen)
    _finish(writer, out)


def write_adapter(model: Path, adapter: Path, out: Path) -> None:
    """Write a LoRA adapter of `model` in float32; B carries what a factor would, as one rank has one alpha there."""
    handle = HfModelSource().open(str(model))
    read = PeftFormat().read("adapter", adapter, handle.summary)
    writer = gguf.GGUFWriter(out.with_suffix(".new"), ARCHITECTURE)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)
    for update in read.updates:
        b = _in_order(update.module, update.tensors["b"].read() * np.float32(update.scaling), handle.summary.config)
        for letter, matrix in (("a", update.tensors["a"].read()), ("b", b)):
            name = f"{_peer_name(update.module)}.weight.lora_{letter}"
            writer.add_tensor(name, np.ascontiguousarray(matrix, np.float32))
    _finish(writer, out)


def _describe(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_vocab_size(config["vocab_size"])


def _tokenizer(writer: gguf.GGUFWriter, model: Path, config: Mapping[str, Any]) -> None:
    stored = json.loads((model / "tokenizer.json").read_text("utf-8"))
    special = {token["content"]: token["id"] for token in stored["added_tokens"]}
    tokens = {number: text for text, number in (stored["model"]["vocab"] | special).items()}
    control = set(special.values())
    count = config["vocab_size"]
    kinds = [gguf.TokenType.CONTROL if each in control else gguf.TokenType.NORMAL for each in range(count)]
    merges = [each if isinstance(each, str) else " ".join(each) for each in stored["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([tokens.get(each, f"[unused{each}]") for each in range(count)])
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _tensors(handle: ModelHandle) -> Iterator[tuple[str, Array]]:
    for name, tensor in handle.tensors().items():
        module = name.rpartition(".")[0]
        yield name, np.ascontiguousarray(_in_order(module, tensor.read(), handle.summary.config), np.float32)


def _in_order(module: str, matrix: Array, config: Mapping[str, Any]) -> Array:
    field = rotated_heads(ARCHITECTURE, module)
    if field is None:
        return matrix
    ordered = np.empty_like(matrix)
    ordered[list(row_order(len(matrix), config[field]))] = matrix
    return ordered


def _peer_name(module: str) -> str:
    digits = [part for part in module.split(".") if part.isdigit()]
    known = [f"blk.{digits[0]}.{part}" for part in INSIDE] if digits else OUTSIDE
    return next(name for name in known if module_of(name) == module)


def _finish(writer: gguf.GGUFWriter, out: Path) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    out.with_suffix(".new").replace(out)
