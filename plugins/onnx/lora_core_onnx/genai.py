"""`genai_config.json`: what onnxruntime-genai reads of a model, so that it runs a bundle as it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lora_core.errors import BundleError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import CONFIG
from lora_core.intake.parsing import parsing
from lora_core.intake.plain_json import parse_json
from lora_core.layers import ModelSummary
from lora_core.models.architecture import Architecture
from lora_core_onnx.names import MODEL


def genai_config(summary: ModelSummary, architecture: Architecture, context_len: int) -> bytes:
    """Return the file's bytes, with the fields that the builder of onnxruntime-genai 0.18 writes."""
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": MODEL,
        "head_size": architecture.head_dim,
        "hidden_size": architecture.dim,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
        "num_attention_heads": architecture.heads,
        "num_hidden_layers": architecture.layers,
        "num_key_value_heads": architecture.kv_heads,
    }
    ends = list(summary.eos_ids)
    model: dict[str, Any] = {
        "context_length": context_len,
        "decoder": decoder,
        "type": architecture.family,
        "vocab_size": architecture.vocab_size,
    }
    if summary.bos_id is not None:
        model["bos_token_id"] = summary.bos_id
    if ends:
        # A text alone is never padded, but the runtime wants an id; its own builder falls back to the end of text.
        model |= {"eos_token_id": ends, "pad_token_id": ends[0]}
    search = {"do_sample": False, "max_length": context_len, "num_beams": 1, "past_present_share_buffer": True}
    return json.dumps({"model": model, "search": search}, indent=2, sort_keys=True).encode() + b"\n"


def context_len_of(path: Path, positions: int) -> int:
    """Return the positions that a model was made for, as the file at `path` beside it says.

    Raises `BundleError` for more than the `positions` that the model has: a cache of any size would be made for them.
    """
    data = read_regular(path, CONFIG, BundleError, links=False)
    with parsing(path):
        length = parse_json(data)["model"]["context_length"]
        if type(length) is not int or not 1 <= length <= positions:
            raise ValueError(f"a context of {length!r} tokens, and the model has {positions} positions")
    return length
