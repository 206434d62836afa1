"""Policies by name, and what they decide for the layers of a base."""

import pytest

from lora_core.errors import ExitCode, PolicyError
from lora_core.hub import PluginHub
from lora_core.layers import LayerInfo
from lora_core.quant.policies import POLICIES, parse_embedding, parse_policy
from lora_core.quant.policy import QuantPolicy, Scheme
from lora_core.quant.undivided import describe_undivided

REGISTRY = {policy.name: policy for policy in POLICIES}
LAYERS = (
    LayerInfo(name="embed", kind="embedding", in_features=1000, out_features=64),
    LayerInfo(name="wide", kind="linear", in_features=64, out_features=30),
    LayerInfo(name="odd", kind="linear", in_features=30, out_features=64),
    LayerInfo(name="head", kind="linear", in_features=64, out_features=1000, is_output=True),
)


def test_core_offers_its_policies_through_the_hub():
    assert set(PluginHub(entry_points=()).policies) == {"fp32", "fp16", "8da4w", "8da8w"}


def test_full_precision_decides_nothing():
    assert set(parse_policy("fp32", REGISTRY).assign(LAYERS).schemes.values()) == {None}


def test_half_precision_rounds_every_layer_and_quantizes_none():
    policy = parse_policy("fp16", REGISTRY)
    assert set(policy.assign(LAYERS).schemes.values()) == {Scheme(bits=16)}


def test_8da4w_quantizes_linear_layers_in_groups_and_keeps_8_bits_for_head_and_embedding():
    schemes = parse_policy("8da4w", REGISTRY).assign(LAYERS).schemes
    grouped = Scheme(bits=4, granularity="group", group_size=32, activations="int8_dynamic")
    head = Scheme(bits=8, activations="int8_dynamic")
    assert schemes == {"embed": Scheme(bits=8), "wide": grouped, "odd": None, "head": head}


def test_8da8w_quantizes_per_channel_unless_a_group_size_is_given():
    channel = parse_policy("8da8w", REGISTRY).assign(LAYERS)
    assert set(channel.schemes.values()) == {None, Scheme(bits=8, activations="int8_dynamic")}
    assert channel.undivided == ()
    grouped = parse_policy("8da8w", REGISTRY, group_size=64)
    assert grouped.linear == Scheme(bits=8, granularity="group", group_size=64, activations="int8_dynamic")
    assert grouped.name == "8da8w"


def test_group_size_zero_means_per_channel():
    policy = parse_policy("8da4w", REGISTRY, group_size=0)
    assert policy.linear == Scheme(bits=4, activations="int8_dynamic")
    assert policy.assign(LAYERS).undivided == ()


def test_a_group_size_leaves_a_head_alone_that_is_quantized_otherwise():
    assert parse_policy("8da4w", REGISTRY, group_size=64).output == parse_policy("8da4w", REGISTRY).output
    assert parse_policy("8da8w", REGISTRY, group_size=64).output.group_size == 64


def test_a_group_size_keeps_head_and_embedding_of_one_scheme_alike():
    scheme = Scheme(bits=8, granularity="group", group_size=32)
    known = {"alike": QuantPolicy(name="alike", summary="", linear=scheme, output=scheme, embedding=scheme)}
    policy = parse_policy("alike", known, group_size=64)
    assert policy.embedding == policy.output == policy.linear != scheme
    assert parse_policy("8da4w", REGISTRY, group_size=64).embedding == Scheme(bits=8)


def test_a_head_is_quantized_as_asked_with_the_activations_of_the_policy():
    asked = Scheme(bits=4, granularity="group", group_size=32, activations="int8_dynamic")
    assert parse_policy("8da4w", REGISTRY, head="4,32").output == asked


def test_float_leaves_head_and_embedding_as_they_are():
    policy = parse_policy("8da4w", REGISTRY, head="float", embedding="float")
    assert policy.output is None
    assert policy.embedding is None


def test_a_head_of_a_policy_in_full_precision_is_refused():
    with pytest.raises(PolicyError, match="quantizes no linear layers"):
        parse_policy("fp32", REGISTRY, head="8,0")


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("8,0", Scheme(bits=8)),
        ("4,0", Scheme(bits=4)),
        ("8", Scheme(bits=8)),
        ("4,32", Scheme(bits=4, granularity="group", group_size=32)),
    ],
)
def test_embedding_option_is_bits_and_group(text, scheme):
    policy = parse_policy("8da4w", REGISTRY, embedding=text)
    assert policy.embedding == scheme
    assert parse_policy("fp32", REGISTRY, embedding=text).embedding == scheme


@pytest.mark.parametrize("text", ["", "2,0", "16,0", "8,-1", "8,x", "eight", "8,0,0", "4,33"])
def test_embedding_option_of_another_form_is_refused(text):
    with pytest.raises(PolicyError):
        parse_embedding(text)


def test_layers_that_the_group_size_does_not_divide_are_reported():
    policy = parse_policy("8da4w", REGISTRY, group_size=32, embedding="8,48")
    assignment = policy.assign(LAYERS)
    assert [layer.name for layer in assignment.undivided] == ["embed", "odd"]
    assert assignment.schemes["odd"] is None
    assert describe_undivided(policy, assignment) == (
        "Policy 8da4w leaves 1 layer at full precision, whose width the group size 48 does not divide: embed.",
        "Policy 8da4w leaves 1 layer at full precision, whose width the group size 32 does not divide: odd.",
    )


def test_long_lists_of_undivided_layers_are_shortened():
    layers = [LayerInfo(name=f"l{i}", kind="linear", in_features=30, out_features=4) for i in range(7)]
    policy = REGISTRY["8da4w"]
    (sentence,) = describe_undivided(policy, policy.assign(layers))
    assert sentence.endswith("l0, l1, l2, l3, l4 and 2 more.")
    assert "7 layers" in sentence


def test_policy_that_divides_everything_has_nothing_to_report():
    policy = REGISTRY["fp32"]
    assert describe_undivided(policy, policy.assign(LAYERS)) == ()


def test_unknown_policy_lists_the_choices():
    with pytest.raises(PolicyError) as raised:
        parse_policy("8da4", REGISTRY)
    assert raised.value.exit_code is ExitCode.UNSUPPORTED
    assert str(raised.value) == (
        "There is no quantization policy '8da4'. Did you mean '8da4w'? Choices: fp32, fp16, 8da4w, 8da8w."
    )


def test_unknown_policy_lists_the_choices_of_the_hub_too():
    with pytest.raises(PolicyError, match="fp32, fp16, 8da4w, 8da8w"):
        parse_policy("int8", PluginHub(entry_points=()).policies)


def test_options_that_mean_nothing_are_all_refused():
    with pytest.raises(PolicyError) as raised:
        parse_policy("fp32", REGISTRY, group_size=32, embedding="3,0")
    assert [problem.what for problem in raised.value.problems] == [
        "Policy 'fp32' quantizes no linear layers, so a group size means nothing to it",
        "An embedding is quantized as BITS,GROUP with 4 or 8 bits, not '3,0'",
    ]


def test_negative_group_size_is_refused():
    with pytest.raises(PolicyError, match="must be 0"):
        parse_policy("8da4w", REGISTRY, group_size=-32)


def test_policies_of_plugins_are_chosen_the_same_way():
    mine = QuantPolicy(name="mine", summary="", linear=Scheme(bits=4, granularity="group", group_size=16))
    assert parse_policy("mine", {**REGISTRY, "mine": mine}, group_size=64).linear.group_size == 64
