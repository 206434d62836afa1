"""Families that are often asked for and are not read, each with what stands against it."""

from __future__ import annotations

from collections.abc import Mapping

_EXPERTS = "of models with experts only Qwen3-MoE is read, whose experts are those of ExecuTorch's definition"
_STREAMS = (
    "it has several streams side by side that predict each other (AltUp), low-rank layers of its own beside attention "
    "(LAuReL), and MLPs that keep the largest values alone"
)

REASONS: Mapping[str, str] = {
    "gemma3n": _STREAMS,
    "gemma3n_text": _STREAMS,
    "dbrx": _EXPERTS,
    "deepseek_v2": _EXPERTS,
    "deepseek_v3": _EXPERTS,
    "gpt_oss": _EXPERTS,
    "granitemoe": _EXPERTS,
    "granitemoehybrid": _EXPERTS,
    "lfm2_moe": _EXPERTS,
    "llama4": _EXPERTS,
    "llama4_text": _EXPERTS,
    "mixtral": _EXPERTS,
    "olmoe": _EXPERTS,
    "phimoe": _EXPERTS,
    "qwen2_moe": _EXPERTS,
    "qwen3_next": _EXPERTS,
    "qwen3_5_moe": _EXPERTS,
    "qwen3_5_moe_text": _EXPERTS,
    "qwen2_vl": "its rotary embedding has an axis for each of time, height and width",
    "qwen2_5_vl": "its rotary embedding has an axis for each of time, height and width",
    "mllama": "some of its layers attend to images alone",
    "mllama_text_model": "some of its layers attend to images alone",
}
"""By `model_type`."""
