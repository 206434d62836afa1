"""From a base model to the graph's dimensions and static tensors.

The weights come from the module that the core builds (ExecuTorch's Llama), by the paths of its layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.errors import Problem
from lora_core.layers import ModelSummary
from lora_core.models.base import BaseModel
from lora_core_qnn_sim.encodings.grid import quantize_channels
from lora_core_qnn_sim.graph.spec import LlamaDims
from lora_core_qnn_sim.runtime.weights import BaseWeights

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
_NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attention.q_norm_fn",
    "self_attn.k_norm": "attention.k_norm_fn",
}
_FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps")


def family_problems(summary: ModelSummary) -> list[Problem]:
    """Return what keeps `summary` from being a graph of the simulator."""
    if summary.family not in FAMILIES:
        what = f"The simulator builds its graph for {', '.join(FAMILIES)}, not for {summary.family!r}"
        return [Problem(what=what, remedy="Use another backend for this model.")]
    missing = [name for name in _FIELDS if name not in summary.config]
    return [Problem(what=f"The model's configuration has no {name}", where=summary.name) for name in missing]


def dims_of(summary: ModelSummary) -> LlamaDims:
    """Return the dimensions of a base that has no `family_problems`."""
    config, layers = summary.config, {layer.name: layer for layer in summary.layers}
    heads = config["num_attention_heads"]
    first = "model.layers.0."
    biased = [name.rpartition(".")[2] for name, layer in layers.items() if name.startswith(first) and layer.has_bias]
    return LlamaDims(
        n_layers=config["num_hidden_layers"],
        dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        vocab_size=config["vocab_size"],
        norm_eps=float(config["rms_norm_eps"]),
        biased=tuple(biased),
        qk_norm=f"{first}self_attn.q_norm" in summary.module_names,
        tied=layers["lm_head"].tied_to is not None,
    )


def real_weights(base: BaseModel, dims: LlamaDims) -> dict[str, npt.NDArray[np.float32]]:
    """Return the float32 weights of `base` under the graph's names; no copy is made where none is needed."""
    state: Mapping[str, Any] = base.module.state_dict()

    def take(path: str) -> npt.NDArray[np.float32]:
        array: npt.NDArray[np.float32] = state[path].detach().to(device="cpu").float().numpy()
        return array

    weights = {"norm.weight": take("norm.weight")}
    for layer in base.summary.layers:
        if layer.tied_to is None:
            weights[f"{layer.name.removeprefix('model.')}.weight"] = take(f"{layer.path}.weight")
        if layer.has_bias:
            weights[f"{layer.name.removeprefix('model.')}.bias"] = take(f"{layer.path}.bias")
    for number in range(dims.n_layers):
        for name, path in _NORMS.items():
            if dims.qk_norm or not name.startswith("self_attn"):
                weights[f"layers.{number}.{name}.weight"] = take(f"layers.{number}.{path}.weight")
    return weights


def rope_tables(
    base: BaseModel, dims: LlamaDims, context_len: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return cosine and sine of shape (context, head_dim / 2) from the module's own tables."""
    half = dims.head_dim // 2
    rope: Any = base.module.rope
    cos, sin = (table[:context_len, :half].float().numpy() for table in (rope.freqs_cos, rope.freqs_sin))
    return np.ascontiguousarray(cos), np.ascontiguousarray(sin)


def quantize_base(
    weights: Mapping[str, npt.NDArray[np.float32]],
    cos: npt.NDArray[np.float32],
    sin: npt.NDArray[np.float32],
    bits: Mapping[str, int],
) -> BaseWeights:
    """Quantize every matrix per output channel to `bits` (by tensor name); vectors stay float32."""
    linears = {name: quantize_channels(array, bits[name]) for name, array in weights.items() if array.ndim == 2}
    vectors = {name: array for name, array in weights.items() if array.ndim == 1}
    return BaseWeights(linears=linears, vectors=vectors, cos=cos, sin=sin)
