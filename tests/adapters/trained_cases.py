"""Adapters with more than A and B on tiny models, as peft itself makes, saves and opens them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import attrs
import peft
import torch
import transformers

from lora_core.models.module import ModuleTensor
from tests.adapters.peft_cases import SHAPE, SPREAD


@attrs.frozen(kw_only=True)
class TrainedCase:
    """`config` are the arguments of `peft.LoraConfig`, `model` those of the model's configuration."""

    name: str
    config: dict[str, Any]
    model: dict[str, Any] = attrs.field(factory=dict)
    family: str = "llama"

    def __str__(self) -> str:
        return self.name


QV = ["q_proj", "v_proj"]
CASES = (
    TrainedCase(name="dora", config={"r": 4, "lora_alpha": 8, "target_modules": QV, "use_dora": True}),
    TrainedCase(
        name="dora-rslora-patterns",
        config={
            "r": 3,
            "lora_alpha": 5,
            "target_modules": ["q_proj", "down_proj", "up_proj"],
            "use_dora": True,
            "use_rslora": True,
            "rank_pattern": {"down_proj": 7},
        },
    ),
    TrainedCase(
        name="dora-beside-biases",
        config={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "use_dora": True},
        family="qwen2",
    ),
    TrainedCase(name="dora-head", config={"r": 4, "lora_alpha": 8, "target_modules": ["lm_head"], "use_dora": True}),
    TrainedCase(name="biases", config={"r": 4, "lora_alpha": 8, "target_modules": QV, "bias": "all"}, family="qwen2"),
    TrainedCase(
        name="biases-of-everything",
        config={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "all"},
        model={"attention_bias": True, "mlp_bias": True},
    ),
    TrainedCase(
        name="biases-and-dora",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "bias": "all", "use_dora": True},
        family="qwen2",
    ),
    TrainedCase(
        name="biases-of-lora-only",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "bias": "lora_only"},
        family="qwen2",
    ),
    TrainedCase(name="no-biases", config={"r": 4, "lora_alpha": 8, "target_modules": QV, "bias": "lora_only"}),
    TrainedCase(name="no-biases-all", config={"r": 4, "lora_alpha": 8, "target_modules": QV, "bias": "all"}),
    TrainedCase(
        name="head",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["lm_head"]},
        model={"tie_word_embeddings": False},
    ),
    TrainedCase(
        name="layer", config={"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "modules_to_save": ["down_proj"]}
    ),
    TrainedCase(
        name="head-and-dora",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["lm_head"], "use_dora": True},
        model={"tie_word_embeddings": False},
    ),
    TrainedCase(name="embedding", config={"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "q_proj"]}),
    TrainedCase(
        name="embedding-alone-rslora",
        config={"r": 5, "lora_alpha": 3, "target_modules": ["embed_tokens"], "use_rslora": True},
    ),
    TrainedCase(
        name="embedding-and-head",
        config={"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "lm_head"]},
        model={"tie_word_embeddings": False},
    ),
    TrainedCase(
        name="whole-embedding",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["embed_tokens"]},
        model={"tie_word_embeddings": False},
    ),
    TrainedCase(
        name="whole-embedding-tied",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["embed_tokens"]},
    ),
    TrainedCase(
        name="whole-embedding-and-head",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]},
        model={"tie_word_embeddings": False},
    ),
    TrainedCase(
        name="tokens",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "trainable_token_indices": [20, 121, 3]},
    ),
    TrainedCase(
        name="tokens-untied",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "trainable_token_indices": [1]},
        model={"tie_word_embeddings": False},
    ),
    TrainedCase(
        name="tokens-of-the-head",
        config={"r": 4, "lora_alpha": 8, "target_modules": QV, "trainable_token_indices": {"lm_head": [7, 8]}},
        model={"tie_word_embeddings": False},
    ),
    TrainedCase(
        name="tokens-and-dora",
        config={
            "r": 4,
            "lora_alpha": 8,
            "target_modules": QV,
            "trainable_token_indices": {"embed_tokens": [33]},
            "use_dora": True,
        },
    ),
    TrainedCase(name="low-rank-head", config={"r": 4, "lora_alpha": 8, "target_modules": ["lm_head"]}),
    TrainedCase(
        name="low-rank-head-untied",
        config={"r": 4, "lora_alpha": 8, "target_modules": ["lm_head", "q_proj"]},
        model={"tie_word_embeddings": False},
    ),
)


def model_of(case: TrainedCase) -> Any:
    """Return the same small random model at every call, its biases and normalizations too."""
    kinds = {"llama": transformers.LlamaConfig, "qwen2": transformers.Qwen2Config}
    torch.manual_seed(0)
    settings = {**SHAPE, "num_hidden_layers": 2, "tie_word_embeddings": True, **case.model}
    model = transformers.AutoModelForCausalLM.from_config(kinds[case.family](**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(0, 0.5)
            elif name.endswith("norm.weight"):
                parameter.normal_(1, 0.1)
    return model


def opened(case: TrainedCase, directory: Path) -> Any:
    """Train nothing, but give everything trainable other values; save it, and return it as peft opens it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns of biases and of tied heads, which are what is tested here
        made = peft.get_peft_model(model_of(case), peft.LoraConfig(task_type="CAUSAL_LM", **case.config))
        generator = torch.Generator().manual_seed(len(case.name))
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    fresh = any(word in name for word in ("lora_A", "lora_B", "lora_embedding"))
                    parameter.copy_(SPREAD * noise if fresh else parameter * (1 + SPREAD * noise) + SPREAD * noise)
        made.save_pretrained(directory, save_embedding_layers=False)
        return peft.PeftModel.from_pretrained(model_of(case), directory).eval()


def weights_of(model: Any) -> dict[str, ModuleTensor]:
    """The tensors of a model by name, as a handle gives them."""
    return {
        name: ModuleTensor(name=name, parameter=parameter.detach().clone())
        for name, parameter in model.named_parameters()
    }
