"""Limits follow from the schemes of a policy, and a backend can state its own."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from lora_core.limits import FLOAT16, FLOAT32, INT4, INT8, Limits, limits_for
from lora_core.quant.policies import POLICIES, parse_policy

REGISTRY = {policy.name: policy for policy in POLICIES}


def recorded(name: str, **options):
    return attrs.asdict(parse_policy(name, REGISTRY, **options))


def figures(limits: Limits):
    return attrs.evolve(limits, reason="")


def test_full_precision_is_tight():
    assert limits_for(recorded("fp32"), {}) == FLOAT32


def test_four_bits_are_judged_by_divergence_and_agreement_alone():
    limits = limits_for(recorded("8da4w"), {})
    assert figures(limits) == figures(INT4)
    assert limits.max_error is None
    assert limits.kl > 0


def test_the_widest_part_of_a_policy_counts():
    assert figures(limits_for(recorded("8da8w", embedding="4,32"), {})) == figures(INT4)
    assert figures(limits_for(recorded("fp32", embedding="8,0"), {})) == figures(INT8)


def test_a_backend_states_its_own_limits_by_policy():
    assert limits_for({"name": "fp16"}, {"fp16": FLOAT16}) == FLOAT16
    assert limits_for({"name": "other"}, {"fp16": FLOAT16}) == FLOAT32


def test_a_quantized_embedding_widens_a_backends_own_limits():
    policy = {"name": "fp16", "embedding": {"bits": 8, "activations": "float"}}
    assert figures(limits_for(policy, {"fp16": FLOAT16})) == figures(INT8)


def test_an_option_that_costs_precision_widens_the_limits_of_every_policy():
    costs = {"kv_cache": {"int8": INT8}}
    assert figures(limits_for(recorded("fp32"), {}, {"kv_cache": "int8"}, costs)) == figures(INT8)
    for options in ({"kv_cache": "fp32"}, {}):
        assert limits_for(recorded("fp32"), {}, options, costs) == FLOAT32


@pytest.mark.parametrize("limits", [FLOAT32, FLOAT16, INT8, INT4])
def test_every_limit_has_a_reason(limits):
    assert limits.reason


def test_the_documented_figures_are_those_in_force():
    names = {"float32": FLOAT32, "float16": FLOAT16, "8 bits": INT8, "4 bits": INT4}
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for field in ("max_error", "mean_error", "kl", "top1", "greedy", "tie", "effect", "direction"):
        values = [getattr(limits, field) for limits in names.values()]
        lines.append(f"| `{field}` | " + " | ".join("-" if value is None else f"{value:g}" for value in values) + " |")
    assert "\n".join(lines) in (Path(__file__).parents[2] / "docs/reference/verify.md").read_text("utf-8")


def test_a_reason_is_told_once_for_all_parts_that_have_it():
    reason = limits_for(recorded("fp16"), {}).reason
    assert reason == f"{FLOAT32.reason} {FLOAT16.reason}"
