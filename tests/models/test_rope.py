"""Rotary tables, against transformers at every position, and what is refused."""

import numpy as np
import pytest
import torch
import transformers

from lora_core.models.rope import Rope, read_rope, read_ropes

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "default", "rope_theta": 10000.0},
        {"rope_type": "default", "rope_theta": 1000000.0},
        {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
        {**LLAMA3, "rope_theta": 500000.0, "original_max_position_embeddings": 8192},
        {**LLAMA3, "rope_theta": 500000.0, "factor": 32.0, "original_max_position_embeddings": 8192},
        {**LLAMA3, "rope_theta": 10000.0, "low_freq_factor": 2.0, "original_max_position_embeddings": 100},
        {**YARN, "rope_theta": 1000000.0},
        {**YARN, "rope_theta": 10000.0, "beta_fast": 8.0, "beta_slow": 2.0, "attention_factor": 1.5},
        {**YARN, "rope_theta": 10000.0, "mscale": 1.5, "mscale_all_dim": 0.8, "truncate": False},
    ],
    ids=lambda parameters: "-".join(str(value) for value in parameters.values()),
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_tables_equal_those_of_transformers_but_for_the_last_place(parameters, head_dim):
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, max_position_embeddings=131072, rope_parameters=parameters
    )
    positions = torch.arange(20000)
    embedding = LlamaRotaryEmbedding(config)
    theirs = embedding(torch.zeros(1), positions[None])
    rope, problems = read_rope({"rope_parameters": parameters}, 131072, "config.json")
    frequencies = rope.frequencies(head_dim)
    ours = rope.tables(head_dim, len(positions))
    assert problems == []
    # torch's power may be off by a unit in the last place, and a blend passes that on four times.
    assert units_apart(frequencies, embedding.inv_freq.numpy()) <= (4 if rope.kind in ("llama3", "yarn") else 2)
    # Where the frequencies agree, so do the angles, and torch's cosine is within a unit of the correctly rounded one;
    # a scale rounds once more.
    same = np.tile(frequencies == embedding.inv_freq.numpy(), 2)
    assert same.mean() > 0.9
    for own, their in zip(ours, theirs, strict=True):
        assert units_apart(own[:, same], their[0].numpy()[:, same]) <= (1 if rope.scale == 1.0 else 2)


def units_apart(one, other):
    """Return the largest distance between two float32 arrays in units in the last place."""
    bits = (np.ascontiguousarray(array).view(np.int32).astype(np.int64) for array in (one, other))
    ordered = [np.where(each < 0, -(2**31) - each, each) for each in bits]
    return int(np.abs(ordered[0] - ordered[1]).max())


def test_scaling_given_to_executorch_is_the_same_scaling():
    from executorch.examples.models.llama.model_args import ModelArgs
    from executorch.examples.models.llama.rope import Rope as ExecuTorchRope

    rope = Rope(theta=500000.0, kind="llama3", factor=8.0, original_context_len=64)
    divisors = rope.divisors(32)
    arguments = ModelArgs(
        dim=128,
        n_heads=4,
        max_context_len=512,
        use_hf_rope=True,
        rope_theta=500000.0,
        rope_scaling_short_factor=divisors,
        rope_scaling_long_factor=divisors,
        rope_scaling_attention_factor=1.0,
    )
    theirs = ExecuTorchRope(arguments)
    ours = rope.tables(32, 512)
    # ExecuTorch computes this path in double precision: an angle of 500 rounds to 3e-5 in float32.
    for their, own in zip((theirs.freqs_cos, theirs.freqs_sin), ours, strict=True):
        torch.testing.assert_close(their, torch.from_numpy(own), atol=1e-4, rtol=0)


def test_older_spelling_is_read():
    older = {
        "rope_theta": 500000.0,
        "rope_scaling": {"type": LLAMA3["rope_type"], **LLAMA3, "original_max_position_embeddings": 4096},
    }
    rope, problems = read_rope(older, 131072, "config.json")
    assert problems == []
    assert rope == Rope(theta=500000.0, kind="llama3", factor=8.0, original_context_len=4096)


def test_original_context_defaults_to_the_context_of_the_model():
    rope, _ = read_rope({"rope_parameters": LLAMA3}, 777, "config.json")
    assert rope.original_context_len == 777


def test_missing_parameters_mean_the_default():
    rope, problems = read_rope({"rope_scaling": None}, 2048, "config.json")
    assert problems == []
    assert (rope.theta, rope.kind, rope.divisors(64)) == (10000.0, "default", None)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("dynamic", ": its frequencies change while a text grows, which a table of positions cannot"),
        ("su", ""),
    ],
)
def test_rotary_types_that_are_not_computed_are_refused_by_name(kind, why):
    _, problems = read_rope({"rope_scaling": {"type": kind, "factor": 2.0}}, 2048, "dir/config.json")
    assert [str(problem) for problem in problems] == [
        f"Rotary embedding type {kind!r} is not supported{why}. Supported: default, linear, llama3, longrope, yarn, "
        "proportional. (dir/config.json: rope_parameters.rope_type)"
    ]


def test_every_problem_of_the_rotary_parameters_is_reported():
    config = {"partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    _, problems = read_rope(config, 2048, "config.json")
    assert [problem.where for problem in problems] == [
        "config.json: partial_rotary_factor",
        "config.json: rope_parameters",
    ]
    assert "low_freq_factor, high_freq_factor" in problems[1].what


def test_parameters_nested_by_layer_type_are_refused():
    _, problems = read_rope({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, 2048, "config.json")
    assert "from layer to layer" in problems[0].what


@pytest.mark.parametrize("factors", [None, [1.0] * 7, [1.0] * 7 + ["1"]])
def test_longrope_needs_a_factor_for_each_frequency(factors):
    scaling = {"type": "longrope", "short_factor": factors, "long_factor": [1.0] * 8}
    _, problems = read_rope({"rope_scaling": scaling}, 2048, "config.json", head_dim=16)
    assert [problem.what for problem in problems] == ["short_factor must have a number for each of the 8 frequencies"]


@pytest.mark.parametrize("length", [64, 65], ids=["short factors", "long factors"])
@pytest.mark.parametrize("part", [1.0, 0.75])
def test_longrope_tables_equal_those_of_transformers(length, part):
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    scaling = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": part}
    count = int(32 * part) // 2
    factors = {
        "short_factor": [1.0 + 0.1 * each for each in range(count)],
        "long_factor": [2.0 + 0.3 * each for each in range(count)],
    }
    config = transformers.Phi3Config(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        rope_parameters={**scaling, **factors},
    )
    theirs = Phi3RotaryEmbedding(config)(torch.zeros(1), torch.arange(length)[None])
    fields = {"rope_parameters": {**scaling, **factors}, "original_max_position_embeddings": 64}
    rope, problems = read_rope(fields, 512, "config.json", head_dim=32, partial=True)
    assert problems == []
    assert rope.width(32) == 2 * count
    for own, their in zip(rope.tables(32, length), theirs, strict=True):
        # The power is off by a unit in the last place here and there, which an angle of up to 64 multiplies.
        assert np.abs(own - their[0].numpy()).max() < 64 * 2**-23


def test_layers_with_a_window_have_tables_of_their_own_in_both_spellings():
    old = {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        }
    }
    for config in (old, new):
        others, own, problems = read_ropes(config, 512, "config.json", head_dim=16, local_theta=1e4)
        assert problems == []
        assert (others.theta, others.kind, others.factor) == (1e6, "linear", 8.0)
        assert (own.theta, own.kind) == (2e4, "default")


@pytest.mark.parametrize("wrong", [{"mscale": -1.0}, {"attention_factor": 0.0}, {"beta_fast": "32"}])
def test_numbers_of_yarn_that_are_not_positive_are_refused_by_name(wrong):
    _, problems = read_rope({"rope_parameters": {**YARN, **wrong}}, 2048, "config.json")
    assert [problem.what for problem in problems] == [f"YaRN needs positive numbers: {next(iter(wrong))}"]
