"""PEFT configurations on tiny random models: the oracle's inputs, for the reader and for the injected module alike."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import attrs
import peft
import torch
import transformers

from lora_core.layers import LayerInfo, ModelSummary

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}

_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (transformers.Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
}


@attrs.frozen(kw_only=True)
class PeftCase:
    """One adapter: `config` are the arguments of `peft.LoraConfig`, `dtype` the type its tensors are stored in."""

    name: str
    config: dict[str, Any]
    family: str = "llama"
    dtype: torch.dtype = torch.float32

    def __str__(self) -> str:
        return self.name


# Larger than the base's weights by far, and small enough that attention scores stay near 1. With A and B near 1 scores
# reach hundreds, softmax picks a single key, and float32 itself is a hundredth of the logits' spread off float64: only
# kernels that happen to be the same would agree.
SPREAD = 0.1
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QV = ["q_proj", "v_proj"]


def _case(name: str, *, family: str = "llama", dtype: torch.dtype = torch.float32, **config: Any) -> PeftCase:
    return PeftCase(name=name, family=family, dtype=dtype, config=config)


CASES: tuple[PeftCase, ...] = (
    # every family, the plain way
    *(_case(f"plain-{family}", family=family, r=4, lora_alpha=8, target_modules=QV) for family in _CONFIGS),
    *(_case(f"everything-{family}", family=family, r=2, lora_alpha=3, target_modules=ALL) for family in _CONFIGS),
    *(
        _case(f"all-linear-{family}", family=family, r=2, lora_alpha=4, target_modules="all-linear")
        for family in _CONFIGS
    ),
    *(_case(f"default-targets-{family}", family=family, r=2, lora_alpha=4, target_modules=None) for family in _CONFIGS),
    # scaling
    _case("rank-1", r=1, lora_alpha=1, target_modules=QV),
    _case("alpha-0", r=4, lora_alpha=0, target_modules=QV),
    _case("alpha-negative", r=4, lora_alpha=-3, target_modules=QV),
    _case("alpha-fraction", r=4, lora_alpha=2.5, target_modules=QV),
    _case("rank-not-a-power-of-two", r=7, lora_alpha=16, target_modules=QV),
    _case("rank-beyond-features", r=40, lora_alpha=16, target_modules=["k_proj"]),
    _case("rslora", r=8, lora_alpha=16, use_rslora=True, target_modules=QV),
    _case("rslora-odd-rank", r=3, lora_alpha=5, use_rslora=True, target_modules=ALL, family="qwen3"),
    _case("rank-pattern-suffix", r=4, lora_alpha=8, target_modules=ALL, rank_pattern={"down_proj": 8}),
    _case("rank-pattern-regex", r=4, lora_alpha=8, target_modules=QV, rank_pattern={r"layers\.[01]\..*q_proj": 6}),
    _case(
        "rank-pattern-anchored",
        r=4,
        lora_alpha=8,
        target_modules=QV,
        rank_pattern={"^model.layers.0.self_attn.q_proj": 6},
    ),
    # peft sorts the keys when it saves, so only a pattern in that order means the same again once it is loaded
    _case(
        "rank-pattern-order", r=4, lora_alpha=8, target_modules=QV, rank_pattern={".*q_proj": 6, "q_proj": 2, "v_.*": 5}
    ),
    _case("rank-pattern-not-a-part", r=4, lora_alpha=8, target_modules=QV, rank_pattern={"proj": 2, "_proj": 3}),
    _case("alpha-pattern", r=4, lora_alpha=8, target_modules=ALL, alpha_pattern={"v_proj": 32, "gate_proj|up_proj": 1}),
    _case(
        "both-patterns-rslora",
        r=4,
        lora_alpha=8,
        use_rslora=True,
        target_modules=ALL,
        rank_pattern={"down_proj": 8, "layers.1.self_attn.k_proj": 3},
        alpha_pattern={"down_proj": 16, r"model\.layers\.2\..*": 5},
    ),
    _case("patterns-regex-targets", r=4, lora_alpha=8, target_modules=r".*\.[qv]_proj", rank_pattern={"q_proj": 9}),
    _case("patterns-all-linear", r=2, lora_alpha=8, target_modules="all-linear", alpha_pattern={"mlp.up_proj": 5}),
    # targets
    _case("written-for-several-models", r=4, lora_alpha=8, target_modules=[*QV, "in_proj", "qkv_proj", "c_attn.x"]),
    _case("one-module", r=4, lora_alpha=8, target_modules=["model.layers.1.mlp.up_proj"]),
    _case("two-parts", r=4, lora_alpha=8, target_modules=["self_attn.q_proj", "1.mlp.down_proj"]),
    _case("regex", r=4, lora_alpha=8, target_modules=r"model\.layers\.(0|2)\.self_attn\.(q|k|v|o)_proj"),
    _case("regex-alternatives", r=4, lora_alpha=8, target_modules=".*(q_proj|down_proj)$", family="qwen2"),
    _case("ALL-LINEAR", r=2, lora_alpha=8, target_modules="ALL-Linear"),
    _case("exclude-list", r=4, lora_alpha=8, target_modules=ALL, exclude_modules=["k_proj", "layers.0.mlp.up_proj"]),
    _case("exclude-regex", r=4, lora_alpha=8, target_modules=ALL, exclude_modules=r".*layers\.1\..*"),
    _case("exclude-all-linear", r=2, lora_alpha=8, target_modules="all-linear", exclude_modules=["down_proj"]),
    _case("exclude-from-regex", r=4, lora_alpha=8, target_modules=r".*_proj", exclude_modules=r".*mlp.*"),
    _case("layer-number", r=4, lora_alpha=8, target_modules=QV, layers_to_transform=1),
    _case("layer-zero", r=4, lora_alpha=8, target_modules=QV, layers_to_transform=0),
    _case("layer-list", r=4, lora_alpha=8, target_modules=QV, layers_to_transform=[0, 2]),
    _case("layer-list-empty", r=4, lora_alpha=8, target_modules=QV, layers_to_transform=[]),
    _case("layer-beyond", r=4, lora_alpha=8, target_modules=QV, layers_to_transform=[2, 17]),
    _case("layers-pattern", r=4, lora_alpha=8, target_modules=QV, layers_to_transform=[1], layers_pattern="layers"),
    _case(
        "layers-pattern-list",
        r=4,
        lora_alpha=8,
        target_modules=QV,
        layers_to_transform=[2],
        layers_pattern=["h", "layers"],
    ),
    _case(
        "layers-and-exclude",
        r=4,
        lora_alpha=8,
        target_modules=ALL,
        layers_to_transform=[0, 1],
        exclude_modules=["o_proj"],
    ),
    _case(
        "full-name-beside-layers",
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "model.layers.2.self_attn.v_proj"],
        layers_to_transform=[0],
    ),
    _case(
        "long-list-is-condensed",
        r=2,
        lora_alpha=8,
        target_modules=[
            f"model.layers.{layer}.{part}" for layer in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")
        ]
        + [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "kvo"]
        + [f"model.layers.{layer}.mlp.{part}_proj" for layer in range(3) for part in ("gate", "down")],
        layers_to_transform=[1],
    ),
    _case("output-head", r=4, lora_alpha=8, target_modules=["q_proj", "lm_head"], family="qwen2"),
    _case("output-head-tied", r=4, lora_alpha=8, target_modules=["lm_head"], family="llama"),
    # what does not change trained weights
    _case("fan-in-fan-out", r=4, lora_alpha=8, target_modules=QV, fan_in_fan_out=True),
    _case("dropout", r=4, lora_alpha=8, target_modules=QV, lora_dropout=0.3),
    _case("gaussian", r=4, lora_alpha=8, target_modules=QV, init_lora_weights="gaussian"),
    _case("orthogonal", r=4, lora_alpha=8, target_modules=QV, init_lora_weights="orthogonal"),
    _case("mica", r=4, lora_alpha=8, target_modules=QV, init_lora_weights="mica"),
    _case("init-false", r=4, lora_alpha=8, target_modules=QV, init_lora_weights=False),
    # stored types
    _case("float16", r=4, lora_alpha=8, target_modules=ALL, dtype=torch.float16),
    _case("bfloat16", r=4, lora_alpha=8, target_modules=ALL, dtype=torch.bfloat16, family="qwen3"),
)


def tiny_model(family: str) -> transformers.PreTrainedModel:
    """Return the same small random causal language model of `family` at every call."""
    config_class, extra = _CONFIGS[family]
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config_class(**SHAPE, **extra)).eval()


def peft_model(case: PeftCase, directory: Path) -> peft.PeftModel:
    """Make the adapter of `case` with random A and B, save it in `directory` and return it as PEFT loads it again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns about odd but legal configurations, which are what is tested here
        config = peft.LoraConfig(task_type="CAUSAL_LM", **case.config)
        made = peft.get_peft_model(tiny_model(case.family), config)
        generator = torch.Generator().manual_seed(len(case.name))
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.data = (SPREAD * torch.randn(parameter.shape, generator=generator)).to(case.dtype)
        made.save_pretrained(directory, save_embedding_layers=False)
        return peft.PeftModel.from_pretrained(tiny_model(case.family), directory).eval()


def summary_of(model: torch.nn.Module, family: str) -> ModelSummary:
    """Describe a Hugging Face model as the core knows it, from its modules alone."""
    output = model.get_output_embeddings()
    layers = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            sizes = (module.in_features, module.out_features)
        elif isinstance(module, torch.nn.Embedding):
            sizes = (module.num_embeddings, module.embedding_dim)
        else:
            continue
        layers.append(
            LayerInfo(
                name=name,
                kind="linear" if isinstance(module, torch.nn.Linear) else "embedding",
                in_features=sizes[0],
                out_features=sizes[1],
                has_bias=getattr(module, "bias", None) is not None,
                is_output=module is output,
            )
        )
    return ModelSummary(
        name=f"tiny-{family}",
        family=family,
        layers=tuple(layers),
        module_names=tuple(name for name, _ in model.named_modules()),
        identities=(f"org/tiny-{family}",),
    )
