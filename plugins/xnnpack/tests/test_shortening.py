"""Methods of few layers, or without slots, that are cut out of a traced graph lower as those that are traced so."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import pytest
from blocks_model import Chain, Dense, plan, streamed
from lora_core_xnnpack.adapter_dtype import FP32 as SLOTS
from lora_core_xnnpack.adapter_dtype import INT8
from lora_core_xnnpack.multimethod.stamping import _trace as trace_together
from lora_core_xnnpack.split.stamping import _trace as trace_split
from lora_core_xnnpack.stamping.sample import Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from workbench import POLICY_REGISTRY

from lora_core.quant.policies import parse_policy
from lora_core.quant.policy import QuantPolicy

FP32 = POLICY_REGISTRY["fp32"]
INT4 = parse_policy("8da4w", POLICY_REGISTRY, head="4,32", embedding="float")


def traced(trace: Callable[..., Traced], base: LayeredBase, keep: Sequence[int]) -> Traced:
    """Trace layers of a model of blocks; from the third on they have a slot."""
    plans = [plan(base.base, lambda layer, name: 2 * (name == "up" and layer >= 2))]
    return trace(base.cut(keep), [base.cut_plan(each, keep) for each in plans], dtype=SLOTS)


def test_a_method_cut_out_of_a_deeper_one_lowers_as_if_it_was_traced() -> None:
    base = LayeredBase.of(streamed([32, 32, 48, 48], FP32))
    cut = traced(trace_split, base, range(4)).shortened(base.blocks, (0, 2, 3))
    assert cut is not None
    assert cut.sample().lists == traced(trace_split, base, (0, 2, 3)).sample().lists


def test_methods_that_share_states_are_cut_together() -> None:
    base = LayeredBase.of(streamed([48] * 3, FP32, Chain))
    cut = traced(trace_together, base, range(3)).shortened(base.blocks, (0, 2))
    assert cut is not None
    assert cut.sample().lists == traced(trace_together, base, (0, 2)).sample().lists


def test_what_a_method_is_cut_out_of_is_as_it_was() -> None:
    base = LayeredBase.of(streamed([48] * 3, FP32))
    deep = traced(trace_split, base, range(3))
    before = str(deep.edge.programs["forward"].graph), dict(deep.edge.programs["forward"].state_dict)
    assert deep.shortened(base.blocks, (0, 1)) is not None
    assert (str(deep.edge.programs["forward"].graph), dict(deep.edge.programs["forward"].state_dict)) == before


def test_layers_that_read_more_than_the_one_before_are_not_cut() -> None:
    base = LayeredBase.of(streamed([48] * 4, FP32, Dense))
    assert traced(trace_split, base, range(4)).shortened(base.blocks, (0, 1)) is None


@pytest.mark.parametrize(("policy", "slots"), [(FP32, SLOTS), (INT4, INT8)])
def test_a_base_cut_out_of_a_template_lowers_as_if_it_was_traced(policy: QuantPolicy, slots: str) -> None:
    base = LayeredBase.of(streamed([64] * 3, policy))
    plans = [plan(base.base, lambda _, name: 2 * (name == "up"))]
    deep = trace_split(base.cut(range(3)), [base.cut_plan(each, range(3)) for each in plans], dtype=slots)
    bare = deep.bare()
    assert bare is not None
    shorter = bare.shortened(base.blocks, (0, 2))
    assert shorter is not None
    assert shorter.sample().lists == trace_split(base.cut((0, 2)), [], dtype=slots).sample().lists


def test_what_is_more_than_beside_a_layer_is_not_cut_out() -> None:
    base = LayeredBase.of(streamed([48], FP32))
    whole = attrs.evolve(traced(trace_split, base, (0,)), wrapped={"blocks.0": "blocks.0.up"})
    assert whole.bare() is None
