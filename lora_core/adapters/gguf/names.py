"""llama.cpp's names of modules, and its order of rows, against those of Hugging Face checkpoints.

Source: `MODEL_TENSORS` and `TENSOR_NAMES` of gguf-py/gguf/constants.py, and `LlamaModel.permute` of
convert_hf_to_gguf.py (https://github.com/ggml-org/llama.cpp).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAGIC = b"GGUF"
"""How a file begins."""
ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "llama": ("llama", "mistral"),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
}
"""The architectures that are read, each with the families of base that llama.cpp converts to it."""

_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}
_INSIDE = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
_BLOCK = re.compile(r"blk\.(?P<index>\d+)\.(?P<part>\w+)")


def module_of(name: str) -> str:
    """Return the module that llama.cpp calls `name`, or `name` itself if there is none of that name."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = _BLOCK.fullmatch(name)
    if match is None or match["part"] not in _INSIDE:
        return name
    return f"model.layers.{match['index']}.{_INSIDE[match['part']]}"


def rotated_heads(architecture: str, module: str) -> str | None:
    """Return the field of `config.json` that says in how many heads the rows of `module` were reordered, if they were.

    For its rotation llama.cpp wants the two halves of each head of queries and keys interleaved.
    """
    if architecture != "llama":
        return None
    return {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])


def row_order(rows: int, heads: int) -> tuple[int, ...]:
    """Return for each row of a checkpoint's matrix which row of llama.cpp's it is; `rows / heads` must be even."""
    width = rows // heads
    half = width // 2
    return tuple(head * width + 2 * index + side for head in range(heads) for side in range(2) for index in range(half))
