"""The runtime's integers equal those of a plain reference, on every family, mode and width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary, read_foundation
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.runtime.context import SimulatedContext
from lora_core_qnn_sim.runtime.executor import Executor
from lora_core_qnn_sim.runtime.kv_cache import QuantizedKvCache

from lora_core.testing.families import write_tiny_family
from plugins.qnn_sim.tests import tiny
from plugins.qnn_sim.tests.plain import plain_alphas, plain_logits

# Sums of integers below 2**53 are exact in any order, and what is rounded is one product: equality holds everywhere.
pytestmark = pytest.mark.processors
PROMPT = [5, 90, 17, 17, 3, 64, 1]


def _both(
    context: SimulatedContext, spec: GraphSpec, alphas: list[float]
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    io, cache = context.read_io_encodings(), context.new_cache()
    padded = np.pad(np.array(PROMPT), (0, spec.input_len - len(PROMPT)))
    ours = context.execute(
        "prefill", padded, valid=len(PROMPT), position=0, cache=cache, io=io, alphas=alphas, all_logits=True
    )
    executor: Any = context._executor
    plain = plain_logits(spec, context.foundation.base, executor.encodings, executor.lora, PROMPT, plain_alphas(alphas))
    return ours, np.array(plain) - io.logits.offset


@pytest.mark.parametrize(
    ("family", "policy", "options"),
    [
        ("llama", "w8a16", {}),
        ("llama", "w4a16", {"quant_updatable": "all"}),
        ("llama", "w8a8", {"quant_updatable": "none"}),
        ("llama", "w8a16", {"rotate": False, "lora_bits": 8}),
        ("qwen2", "w8a16", {}),
        ("qwen3", "w8a8", {"quant_updatable": "all"}),
    ],
)
def test_logits_equal_the_plain_reference_bit_for_bit(
    tmp_path: Path, family: str, policy: str, options: dict[str, Any]
) -> None:
    model = tiny.open_model(tiny.write_checkpoint(tmp_path / "model", model_type=family))
    assert_equal_bits(model, policy, options, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "policy"),
    [
        ("gemma", "w8a16"),
        ("gemma2", "w8a16"),
        ("gemma3", "w8a8"),
        ("phi3", "w8a16"),
        ("smollm3", "w8a16"),
        ("olmo2", "w8a8"),
        ("granite", "w4a16"),
        ("lfm2", "w8a16"),
    ],
)
def test_logits_of_other_families_equal_the_plain_reference_bit_for_bit(
    tmp_path: Path, family: str, policy: str
) -> None:
    model = tiny.open_model(write_tiny_family(tmp_path / "model", family, sliding_window=32, vocab_size=96))
    assert_equal_bits(model, policy, {}, tmp_path / "out")


def assert_equal_bits(model: Any, policy: str, options: dict[str, Any], out: Path) -> None:
    targets = (
        "q_proj",
        "qkv_proj",
        "o_proj",
        "gate_proj",
        "gate_up_proj",
        "down_proj",
        "in_proj",
        "out_proj",
        "w1",
        "w2",
    )
    adapter = tiny.adapter("only", model.summary, seed=3, targets=targets)
    bundle = tiny.export(tiny.make_job(model, [adapter], policy=policy, **options), out)
    context = SimulatedContext.create(bundle.file("context.bin"), bundle.file("foundation.bin"))
    for path in bundle.manifest.adapters[0].detail["sections"].values():
        context.apply(bundle.file(path))
    for alphas in ([1.0], [0.0], [1.625]):
        ours, plain = _both(context, context.binary.spec, alphas)
        assert np.array_equal(ours, plain)


def test_hot_switch_logits_equal_the_plain_reference_bit_for_bit(tmp_path: Path, model: Any, five: Any) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:3], hot_switch=True), tmp_path / "out")
    context = SimulatedContext.create(bundle.file("context.bin"), bundle.file("foundation.bin"))
    ours, plain = _both(context, context.binary.spec, [0.0, 1.0, 0.5])
    assert np.array_equal(ours, plain)


def test_prefill_and_decode_give_the_same_integers(grouped: Any) -> None:
    context = SimulatedContext.create(grouped.file("context.bin"), grouped.file("foundation.bin"))
    spec, io = context.binary.spec, context.read_io_encodings()
    padded = np.pad(np.array(PROMPT), (0, spec.input_len - len(PROMPT)))
    at_once = context.execute("prefill", padded, valid=len(PROMPT), position=0, cache=context.new_cache(), io=io)
    cache = context.new_cache()
    for position, token in enumerate(PROMPT):
        one = context.execute("decode", np.array([token]), valid=1, position=position, cache=cache, io=io)
    assert np.array_equal(at_once, one)


def test_zero_strength_equals_the_base(grouped: Any) -> None:
    context = SimulatedContext.create(grouped.file("context.bin"), grouped.file("foundation.bin"))
    base, _ = _both(context, context.binary.spec, [1.0])
    context.apply(grouped.path / "sections" / "llm_a5.bin")
    silent, _ = _both(context, context.binary.spec, [0.0])
    assert np.array_equal(base, silent)


def test_a_graph_with_zero_lora_equals_the_graph_without_branches(grouped: Any) -> None:
    foundation: FoundationBinary = read_foundation(grouped.file("foundation.bin"))
    executor = Executor(spec=foundation.spec, base=foundation.base, encodings=foundation.encodings, lora={})
    plain_graph = executor.run(
        np.array(PROMPT), 0, QuantizedKvCache.empty(foundation.spec), np.array([16384.0]), last_only=False
    )
    context = SimulatedContext.create(grouped.file("context.bin"), grouped.file("foundation.bin"))
    with_branches, _ = _both(context, context.binary.spec, [1.0])
    assert np.array_equal(plain_graph - foundation.encodings["lm_head.output"].offset, with_branches)
    assert attrs.evolve(context.binary.spec, slots=()) == foundation.spec
