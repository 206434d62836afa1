"""Configurations: what is refused, by name, all at once; what has a default."""

import json

import pytest

from lora_core.errors import ModelError
from lora_core.models.architecture import read_architecture
from lora_core.models.base import ModelOptions
from lora_core.models.families import ModelFamily, find_family
from lora_core.models.hf import HfModelSource
from lora_core.models.supported_families import FAMILIES

PLAIN = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


def family(name: str) -> ModelFamily:
    return next(family for family in FAMILIES if family.name == name)


def read(name: str, **changes):
    return read_architecture({**PLAIN, "model_type": name, **changes}, family(name), "config.json")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        (
            "hidden_act",
            "relu2",
            "Activation 'relu2' is not supported. Supported: silu, swish, gelu_pytorch_tanh, gelu_new, gelu",
        ),
        ("hidden_size", None, "hidden_size is missing; it must be a positive integer"),
        ("hidden_size", "64", "hidden_size is '64'; it must be a positive integer"),
        ("hidden_size", 62, "hidden_size (62) is not a multiple of num_attention_heads (4)"),
        ("num_hidden_layers", 0, "num_hidden_layers is 0; it must be a positive integer"),
        ("num_key_value_heads", 3, "num_attention_heads (4) is not a multiple of num_key_value_heads (3)"),
        ("head_dim", 15, "Rotary embeddings need an even head_dim"),
        ("vocab_size", True, "vocab_size is True; it must be a positive integer"),
        ("rms_norm_eps", None, "rms_norm_eps must be a number"),
        ("max_position_embeddings", None, "max_position_embeddings is missing; it must be a positive integer"),
        ("quantization_config", {"quant_method": "gptq"}, "The checkpoint is already quantized (gptq)"),
        ("partial_rotary_factor", 0.5, "Partial rotary embeddings (partial_rotary_factor=0.5) are not supported"),
    ],
)
def test_field_that_cannot_be_honoured_is_refused_by_name(field, value, said):
    architecture, problems = read("llama", **{field: value})
    assert architecture is None
    assert [problem.what for problem in problems] == [said]
    assert problems[0].where == f"config.json: {field}"


@pytest.mark.parametrize(
    ("name", "field"),
    [("granite", "logits_scaling"), ("granite", "residual_multiplier"), ("gemma2", "attn_logit_softcapping")],
)
def test_a_factor_of_nothing_is_refused_by_name(name, field):
    _, problems = read(name, **{field: 0})
    assert [(problem.what, problem.where) for problem in problems] == [
        (f"{field} must be a positive number", f"config.json: {field}")
    ]


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("mistral", "sliding_window", 0),
        ("phi3", "sliding_window", "2047"),
        ("gemma3", "sliding_window_pattern", 0),
        ("smollm3", "no_rope_layer_interval", 0),
        ("qwen3_5", "full_attention_interval", 0),
    ],
)
def test_a_number_of_tokens_or_layers_that_is_none_is_refused_by_name(name, field, value):
    _, problems = read(name, num_key_value_heads=4, hidden_act="silu", **{field: value})
    assert [(problem.what, problem.where) for problem in problems] == [
        (f"{field} is {value!r}; it must be a positive integer", f"config.json: {field}")
    ]


def test_a_number_that_does_not_count_may_be_anything():
    assert read("qwen2", num_key_value_heads=4, sliding_window=0)[1] == []
    assert read("gemma3", sliding_window_pattern=None, layer_types=["full_attention"] * 2)[1] == []


def test_all_problems_of_a_configuration_are_reported_together():
    _, problems = read(
        "qwen3", hidden_act="relu", vocab_size=-1, rope_scaling={"type": "dynamic"}, layer_types=["conv"]
    )
    fields = [problem.where.removeprefix("config.json: ") for problem in problems]
    assert fields == ["vocab_size", "hidden_act", "layer_types", "rope_parameters.rope_type"]


@pytest.mark.parametrize(
    ("name", "changes", "window"),
    [
        ("llama", {"sliding_window": 16}, None),
        ("mistral", {}, 4096),
        ("mistral", {"sliding_window": 16}, 16),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 16}, None),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True}, None),
        ("qwen2", {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}, 16),
        ("qwen3", {"sliding_window": 16, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, None),
        (
            "qwen3",
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            16,
        ),
    ],
)
def test_sliding_window_counts_where_transformers_counts_it(name, changes, window):
    changes = {"num_key_value_heads": 4, **changes}
    architecture, problems = read(name, **changes)
    assert problems == []
    assert architecture.window == window


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_context_len": 16, "max_seq_len": 32}, "between 1 and max_context_len"),
        ({"max_context_len": 16, "max_seq_len": 4}, "at least 5"),
        ({"max_context_len": 16, "max_seq_len": 0, "dynamic_seq_len": False}, "between 1 and max_context_len"),
    ],
)
def test_lengths_that_do_not_fit_together_are_refused(tiny, options, said):
    with pytest.raises(ModelError, match=said):
        HfModelSource().open(str(tiny("llama2").directory)).load(ModelOptions(**options))


@pytest.mark.parametrize(
    ("name", "changes", "biases"),
    [
        ("llama", {}, (False, False, False)),
        ("llama", {"attention_bias": True}, (True, True, False)),
        ("llama", {"mlp_bias": True}, (False, False, True)),
        ("mistral", {"attention_bias": True, "mlp_bias": True}, (False, False, False)),
        ("qwen2", {}, (True, False, False)),
        ("qwen3", {}, (False, False, False)),
        ("qwen3", {"attention_bias": True}, (True, True, False)),
    ],
)
def test_biases_are_where_the_family_has_them(name, changes, biases):
    architecture, _ = read(name, num_key_value_heads=4, **changes)
    assert (architecture.qkv_bias, architecture.o_bias, architecture.mlp_bias) == biases


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "Model type 'gpt2' is not supported"),
        ({"model_type": "mixtral"}, "Model type 'mixtral' is not supported: of models with experts only Qwen3-MoE"),
        ({"model_type": None}, "The configuration has no model_type"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification is not supported"),
    ],
)
def test_other_architectures_are_refused_with_a_list_of_those_supported(changes, said):
    found, problems = find_family({**PLAIN, **changes}, FAMILIES, "config.json")
    assert found is None
    assert said in problems[0].what
    assert "LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Gemma" in problems[0].what


def test_plugin_adds_a_family(tiny, llama_directory):
    path = llama_directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "cousin", "architectures": ["Cousin"]}))
    with pytest.raises(ModelError, match="Model type 'cousin' is not supported"):
        HfModelSource().open(str(llama_directory))
    cousin = ModelFamily(
        name="cousin", model_types=("cousin",), architectures=("Cousin",), defaults=dict(family("llama").defaults)
    )
    model = HfModelSource().with_families((*FAMILIES, cousin)).open(str(llama_directory))
    assert model.summary.family == "cousin"
    assert model.load(ModelOptions(max_context_len=16, max_seq_len=16)).module.n_layers == 2


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: kind.name)
def test_what_a_configuration_leaves_out_is_what_transformers_has_as_default(kind):
    from transformers import CONFIG_MAPPING

    theirs, made = CONFIG_MAPPING[kind.model_types[0]], CONFIG_MAPPING[kind.model_types[0]]()
    ours = {**kind.sizes, **kind.defaults}
    known = {field: value for field, value in ours.items() if hasattr(theirs, field)}
    # Some fields that the class has as None are made of others, or told, when a configuration is made.
    defaults = {field: getattr(theirs, field) for field in known}
    assert known == {
        field: getattr(made, field) if default is None and known[field] is not None else default
        for field, default in defaults.items()
    }
    # All sizes, since a configuration inside another is told without those that are the default.
    assert {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"} <= known.keys()
