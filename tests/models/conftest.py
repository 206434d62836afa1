"""Tiny random models of every family, saved as Hugging Face saves them, beside the reference they are compared with."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers

SIZES = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}


def longrope(frequencies: int, **more: object) -> dict[str, object]:
    """Return LongRoPE's parameters with factors of no pattern."""
    short = [1.0 + 0.13 * ((3 * index) % 5) for index in range(frequencies)]
    long = [1.5 + 0.4 * ((2 * index) % 7) for index in range(frequencies)]
    return {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": short, "long_factor": long, **more}


FAMILIES = {
    "llama2": ("LlamaConfig", {"num_key_value_heads": 4}),
    "llama3.1-scaled-rope": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE}),
    "llama3.2-scaled-rope-tied": (
        "LlamaConfig",
        {"rope_parameters": {**LLAMA3_ROPE, "factor": 32.0, "low_freq_factor": 2.0}, "tie_word_embeddings": True},
    ),
    "llama-linear-rope": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
    "llama-yarn": (
        "LlamaConfig",
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "beta_fast": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "llama-every-bias": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "smollm2-tied": (
        "LlamaConfig",
        {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        },
    ),
    "mistral-within-window": ("MistralConfig", {"sliding_window": 64}),
    "mistral-own-head-dim": ("MistralConfig", {"sliding_window": None, "head_dim": 24}),
    "qwen2": ("Qwen2Config", {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}),
    "qwen2.5-tied": ("Qwen2Config", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "qwen3-own-head-dim-tied": ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "mistral-beyond-window": ("MistralConfig", {"sliding_window": 12}),
    "qwen2-windows-by-layer": (
        "Qwen2Config",
        {"sliding_window": 10, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "gemma": ("GemmaConfig", {"head_dim": 16, **GEMMA}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 12, **GEMMA}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 20,
            "sliding_window": 12,
            "layer_types": ["sliding_attention", "full_attention"],
            **GEMMA,
        },
    ),
    "gemma4": (
        "Gemma4TextConfig",
        {
            "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "global_head_dim": 16,
            "sliding_window": 12,
            "hidden_size_per_layer_input": 10,
            "vocab_size_per_layer_input": 128,
            "final_logit_softcapping": 30.0,
            **GEMMA,
        },
    ),
    "gemma4-dense": (
        "Gemma4TextConfig",
        {
            "layer_types": ["sliding_attention", "full_attention"],
            "attention_k_eq_v": True,
            "head_dim": 12,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "sliding_window": 12,
            "hidden_size_per_layer_input": 0,
            **GEMMA,
        },
    ),
    "phi3": ("Phi3Config", {"pad_token_id": 0, "sliding_window": 20}),
    "phi3.5-longrope": (
        "Phi3Config",
        {"pad_token_id": 0, "original_max_position_embeddings": 128, "rope_parameters": longrope(6)},
    ),
    "phi3.5-longrope-long": (
        "Phi3Config",
        {"pad_token_id": 0, "original_max_position_embeddings": 32, "rope_parameters": longrope(6)},
    ),
    "phi4-mini-partial-rotary": (
        "Phi3Config",
        {
            "pad_token_id": 0,
            "head_dim": 16,
            "hidden_size": 64,
            "tie_word_embeddings": True,
            "original_max_position_embeddings": 128,
            "rope_parameters": longrope(6, partial_rotary_factor=0.75),
        },
    ),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0], "pad_token_id": 0}),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.3,
            "attention_multiplier": 0.11,
            "logits_scaling": 2.5,
            "tie_word_embeddings": True,
        },
    ),
    "olmo2": ("Olmo2Config", {"eos_token_id": 2}),
    "qwen3.5": (
        "Qwen3_5TextConfig",
        {
            "head_dim": 24,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "eos_token_id": 2,
        },
    ),
    "lfm2": (
        "Lfm2Config",
        {
            "layer_types": ["conv", "full_attention"],
            "conv_bias": True,
            "intermediate_size": 100,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.2,
        },
    ),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {
            "head_dim": 16,
            "num_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3-moe-unnormalized": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 3, "moe_intermediate_size": 16},
    ),
    "qwen3-attention-bias": ("Qwen3Config", {"head_dim": 16, "attention_bias": True}),
}


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Fill every parameter, norms and biases too, so that none can be left out without a difference."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        # Large enough that a missing bias, scale or rotation moves logits by far more than any tolerance here.
        spread = 0.2 if parameter.dim() > 1 else 0.5
        parameter.data = torch.randn(parameter.shape, generator=generator) * spread
    for name, buffer in module.named_buffers():
        if name.endswith("layer_scalar"):
            buffer.data = 1.0 + torch.randn(buffer.shape, generator=generator) * 0.3


def config_of(family: str, **changes: object) -> transformers.PreTrainedConfig:
    kind, own = FAMILIES[family]
    return getattr(transformers, kind)(**{**SIZES, **own, **changes})


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SimpleNamespace]:
    """Return a maker of tiny models: `.directory`, and `.reference`, what transformers loads from it in float32."""
    made: dict[object, SimpleNamespace] = {}

    def make(family: str, *, dtype: torch.dtype = torch.float32, shard: str = "1GB", **changes: object):
        key = (family, dtype, shard, tuple(sorted(changes.items())))
        if key not in made:
            directory: Path = tmp_path_factory.mktemp("tiny") / family
            model = transformers.AutoModelForCausalLM.from_config(config_of(family, **changes))
            randomize(model)
            model.tie_weights()
            model.to(dtype).save_pretrained(directory, max_shard_size=shard)
            reference = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
            made[key] = SimpleNamespace(directory=directory, reference=reference.eval().requires_grad_(False))
        return made[key]

    return make


@pytest.fixture
def llama_directory(tiny: Callable[..., SimpleNamespace], tmp_path: Path) -> Path:
    """Return a copy of a tiny Llama that a test may damage."""
    import shutil

    directory = tmp_path / "llama"
    shutil.copytree(tiny("llama2").directory, directory)
    return directory
