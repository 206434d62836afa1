"""LoRA adapters in GGUF, written by the `gguf` package the way llama.cpp's converter arranges them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"lm_head": "output"}
Matrix = npt.NDArray[np.float32]


def interleaved(b: Matrix, heads: int) -> Matrix:
    """The rows of B as `LlamaModel.permute` of llama.cpp's converter puts them."""
    return b.reshape(heads, 2, b.shape[0] // heads // 2, b.shape[1]).swapaxes(1, 2).reshape(b.shape)


def write_gguf(
    path: Path,
    pairs: Mapping[str, tuple[Matrix, Matrix]],
    *,
    architecture: str = "llama",
    alpha: float = 8.0,
    heads: tuple[int, int] = (4, 2),
    dtype: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write A and B by Hugging Face module names; `heads` are those of queries and of keys."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    writer.add_array("general.tags", ["one", "two"])
    for key, value in (metadata or {}).items():
        writer.add_string(key, value)
    for module, (a, b) in pairs.items():
        _, _, index, *rest = [*module.split("."), "", ""]
        part = ".".join(filter(None, rest))
        if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
            b = interleaved(b, heads[0] if part.endswith("q_proj") else heads[1])
        for letter, matrix in (("a", a), ("b", b)):
            stored = gguf.quants.quantize(matrix, dtype)
            name = f"blk.{index}.{PARTS[part]}" if part else OUTSIDE[module]
            writer.add_tensor(f"{name}.weight.lora_{letter}", stored, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
