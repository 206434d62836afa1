"""Tiny random models that no family covers, as transformers saves them, and adapters of peft on their linear layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers.pytorch_utils import Conv1D

VOCABULARY = 258
"""256 bytes, and what begins and ends a text."""
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": None,
}
_GPT2 = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoXConfig", {**_SIZES, "rotary_pct": 0.5}),
    "gpt2": ("GPT2Config", {**_GPT2, "bos_token_id": 256, "eos_token_id": 257}),
    "stablelm": ("StableLmConfig", {**_SIZES, "num_key_value_heads": 2, "partial_rotary_factor": 0.5}),
    "falcon": ("FalconConfig", {**_SIZES, "new_decoder_architecture": False, "multi_query": True, "bias": True}),
    "cohere": ("CohereConfig", {**_SIZES, "num_key_value_heads": 2, "logit_scale": 0.5}),
    "starcoder2": ("Starcoder2Config", {**_SIZES, "num_key_value_heads": 2, "sliding_window": 12}),
    "phi": ("PhiConfig", {**_SIZES, "partial_rotary_factor": 0.5}),
    "opt": ("OPTConfig", {**_SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}),
    "bloom": ("BloomConfig", {**_SIZES, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 64}),
    "gptj": ("GPTJConfig", {**_GPT2, "rotary_dim": 4, "bos_token_id": 256, "eos_token_id": 257}),
    "gpt_neo": (
        "GPTNeoConfig",
        {**_SIZES, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8},
    ),
    "gpt_bigcode": ("GPTBigCodeConfig", {**_GPT2, "bos_token_id": 256, "eos_token_id": 257}),
    "codegen": ("CodeGenConfig", {**_GPT2, "n_ctx": 64, "rotary_dim": 4, "bos_token_id": 256, "eos_token_id": 257}),
    "nemotron": ("NemotronConfig", {**_SIZES, "num_key_value_heads": 2}),
    "glm": ("GlmConfig", {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}),
    "helium": ("HeliumConfig", {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}),
    "olmo": ("OlmoConfig", {**_SIZES, "num_key_value_heads": 2}),
    "persimmon": ("PersimmonConfig", {**_SIZES}),
    "mixtral": ("MixtralConfig", {**_SIZES, "num_key_value_heads": 2, "num_local_experts": 4}),
    "mamba": ("MambaConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
"""By model type, the configuration class of transformers and what it is given."""
REFUSED = ("falcon", "gpt_neo", "mamba")
"""Those whose definition does not fit transformers' own static cache."""
EXPORTED = tuple(name for name in DECODERS if name not in REFUSED)


def write_decoder(directory: Path, model_type: str, *, seed: int = 0, **changes: Any) -> Path:
    """Write a random decoder with a tokenizer of bytes into `directory` and return it."""
    name, given = DECODERS[model_type]
    config = getattr(transformers, name)(**{**given, **changes})
    return _write(directory, transformers.AutoModelForCausalLM.from_config(config), seed)


def write_classifier(directory: Path, name: str, *, seed: int = 0, **given: Any) -> Path:
    """Write a random model of class `name` with the configuration `given` into `directory` and return it."""
    cls = getattr(transformers, name)
    return _write(directory, cls(cls.config_class(**given)), seed)


# Mixtral's: peft adapts its experts and their gate as bare parameters, which are refused.
_ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


def write_adapter(directory: Path, base: Path, *, seed: int, **config: Any) -> Path:
    """Write an adapter as peft saves one of `base` with random A and B, on all linear layers, into `directory`."""
    import peft

    classifies = config.get("task_type") == "SEQ_CLS"
    opener = transformers.AutoModelForSequenceClassification if classifies else transformers.AutoModelForCausalLM
    opened = opener.from_pretrained(base)
    targets = _ATTENTION if opened.config.model_type == "mixtral" else "all-linear"
    told = {"task_type": "CAUSAL_LM", "target_modules": targets, "r": 3, "lora_alpha": 6, **config}
    turned = any(isinstance(each, Conv1D) for each in opened.modules())
    model = peft.get_peft_model(opened, peft.LoraConfig(fan_in_fan_out=turned, **told))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                each.normal_(0.0, 0.2, generator=generator)
    model.save_pretrained(directory)
    return directory


def _write(directory: Path, model: Any, seed: int) -> Path:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            if each.dim() > 1:
                each.normal_(0.0, 0.25, generator=generator)
            else:  # norms are near one, biases near zero
                each.add_(torch.empty_like(each).normal_(0.0, 0.1, generator=generator))
    model.save_pretrained(directory)
    _write_tokenizer(directory)
    return directory


def _write_tokenizer(directory: Path) -> None:
    """Write a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(told), "utf-8")
