"""Blocks with sizes of their own, and with keys and values of others: as transformers' Gemma 4 reads its fields."""

import pytest

from lora_core.models import hf_names
from lora_core.models.architecture import read_architecture
from lora_core.models.supported_families import FAMILIES

TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
PLAIN = {
    "model_type": "gemma4_text",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "vocab_size_per_layer_input": 128,
    "hidden_size_per_layer_input": 8,
    "layer_types": TYPES,
}


def read(**changes):
    family = next(each for each in FAMILIES if each.name == "gemma4")
    return read_architecture({**PLAIN, **changes}, family, "config.json")


def kinds(**changes):
    architecture, problems = read(**changes)
    assert problems == []
    return architecture.kinds


def test_layers_of_full_attention_have_heads_of_another_width():
    assert [kind.head_dim for kind in kinds()] == [None, 512, None, 512]
    assert [kind.head_dim for kind in kinds(global_head_dim=24)] == [None, 24, None, 24]


def test_a_table_of_layers_is_the_same_said_otherwise():
    listed = {"1": {"head_dim": 24}, "3": {"head_dim": 24}}
    assert kinds(per_layer_config=listed, global_head_dim=512) == kinds(global_head_dim=24)


def test_heads_of_full_attention_are_as_many_as_the_field_says_where_one_layer_makes_keys_and_values():
    told = {"num_global_key_value_heads": 1}
    assert [kind.kv_heads for kind in kinds(**told)] == [None] * 4
    found = kinds(**told, attention_k_eq_v=True)
    assert [kind.kv_heads for kind in found] == [None, 1, None, 1]
    assert [kind.values_are_keys for kind in found] == [False, True, False, True]


def test_the_last_layers_borrow_from_the_last_of_their_type_before_them():
    found = kinds(num_hidden_layers=6, layer_types=[*TYPES, *TYPES[:2]], num_kv_shared_layers=2)
    assert [kind.borrows for kind in found] == [False] * 4 + [True] * 2
    assert [kind.lends for kind in found] == [False, False, True, True, False, False]


@pytest.mark.parametrize(("wide", "widths"), [(True, [96, 96, 192, 192]), (False, [96] * 4)])
def test_layers_that_borrow_may_have_an_mlp_twice_as_wide(wide, widths):
    architecture, _ = read(num_kv_shared_layers=2, use_double_wide_mlp=wide)
    assert [architecture.hidden_dim_of(kind) for kind in architecture.kinds] == widths


def test_the_last_layer_attends_fully_whatever_its_type_says():
    assert kinds(layer_types=["sliding_attention"] * 4)[-1].window is None


def test_what_layers_that_borrow_leave_in_a_checkpoint_is_known():
    architecture, _ = read(num_kv_shared_layers=2)
    left = hf_names.leftovers(architecture)
    assert "model.layers.2.self_attn.k_proj" in left
    assert not any(name.startswith("model.layers.1.") for name in left)
    assert not {f"{name}.weight" for name in left} & hf_names.tensor_shapes(architecture).keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_kv_shared_layers": 3}, "num_kv_shared_layers is 3, which leaves no layer to share with"),
        ({"num_kv_shared_layers": -1}, "num_kv_shared_layers is -1; it must be a positive integer"),
        ({"enable_moe_block": True}, "Blocks of experts beside the MLP (enable_moe_block) are not supported"),
        ({"use_bidirectional_attention": "all"}, "Attention that looks ahead"),
        ({"per_layer_config": {"1": {"sliding_window": 3}}}, "Layers with sliding_window of their own"),
        ({"per_layer_config": {"4": {"head_dim": 8}}}, "per_layer_config names layer '4'"),
        ({"per_layer_config": {"1": {"head_dim": 8}}}, "Layers with global positions have heads of several widths"),
        ({"per_layer_config": [8]}, "per_layer_config is no table of layers"),
        ({"global_head_dim": 15}, "Rotary embeddings need an even head_dim"),
        ({"vocab_size_per_layer_input": 64}, "vocab_size_per_layer_input (64) is less than vocab_size (128)"),
        ({"hidden_size_per_layer_input": "8"}, "hidden_size_per_layer_input is '8'; it must be a positive integer"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(changes, said):
    architecture, problems = read(**changes)
    assert architecture is None
    assert len(problems) == 1
    assert said in problems[0].what


def test_tokens_of_images_may_look_ahead():
    assert read(use_bidirectional_attention="vision")[1] == []
