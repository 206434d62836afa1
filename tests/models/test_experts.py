"""Blocks with experts: which they are, and what is refused."""

import numpy as np
import pytest

from lora_core.adapters.peft.format import PeftFormat
from lora_core.errors import AdapterError
from lora_core.models.architecture import read_architecture
from lora_core.models.experts import Experts
from lora_core.models.hf import HfModelSource
from lora_core.models.supported_families import FAMILIES
from lora_core.tensors import open_tensors
from lora_core.testing.families import write_family_adapter, write_tiny_family

PLAIN = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}


def read(**changes):
    family = next(each for each in FAMILIES if each.name == "qwen3_moe")
    return read_architecture({**PLAIN, **changes}, family, "config.json")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [True, True, True, True]),
        ({"mlp_only_layers": [1]}, [True, False, True, True]),
        ({"decoder_sparse_step": 2}, [False, True, False, True]),
    ],
)
def test_experts_are_where_transformers_has_them(changes, expected):
    architecture, problems = read(**changes)
    assert problems == []
    assert [kind.experts for kind in architecture.kinds] == expected


def test_the_number_of_experts_has_two_names():
    architecture, _ = read(num_local_experts=5, norm_topk_prob=True)
    assert architecture.experts == Experts(count=5, chosen=2, hidden_dim=24, normalizes=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, of 8 experts"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing; it must be a positive integer"),
        ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0; it must be a positive integer"),
        ({"mlp_only_layers": 1}, "mlp_only_layers is no list of layers"),
        ({"hidden_act": "gelu"}, "Experts with the activation 'gelu' are not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, said):
    architecture, problems = read(**changes)
    assert architecture is None
    assert [problem.what for problem in problems] == [said]


def test_windows_count_if_they_are_used():
    assert read(sliding_window=16)[0].window is None
    assert read(sliding_window=16, use_sliding_window=True, max_window_layers=4)[0].window == 16


def test_an_adapter_on_experts_is_refused_with_the_reason(tmp_path):
    base = HfModelSource().open(str(write_tiny_family(tmp_path / "base", "qwen3_moe"))).summary
    adapter = write_family_adapter(tmp_path / "adapter", base, seed=1)
    (weights,) = adapter.glob("*.safetensors")
    tensors = {each.name: each.read() for each in open_tensors(weights)}
    for side, shape in (("A", (2, 32)), ("B", (24, 2))):
        name = f"base_model.model.model.layers.0.mlp.experts.3.up_proj.lora_{side}.weight"
        tensors[name] = np.ones(shape, np.float32)
    from safetensors.numpy import save_file

    save_file(tensors, weights)
    with pytest.raises(AdapterError, match="experts are no layers of their own and carry no LoRA") as refused:
        PeftFormat().read("tested", adapter, base)
    assert "model.layers.0.mlp.experts.3.up_proj" in str(refused.value)


def test_whoever_exports_experts_is_told_how_they_are_stored(tmp_path):
    (note,) = HfModelSource().open(str(write_tiny_family(tmp_path / "base", "qwen3_moe"))).notes
    assert note.startswith("Experts are not quantized, whatever the policy")
