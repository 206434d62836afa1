"""Programs derived from a few layers are those of a full lowering, byte for byte, or are not derived."""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from blocks_model import Chain, Dense, plan, streamed
from executorch.exir.passes import debug_handle_generator_pass
from lora_core_xnnpack.adapter_dtype import INT8
from lora_core_xnnpack.cache.forms import named_tensors, stored
from lora_core_xnnpack.multimethod.stamping import stamp_together
from lora_core_xnnpack.split.stamping import stamp_split
from lora_core_xnnpack.split.weightless import WeightlessSet
from lora_core_xnnpack.stamping.elements import NotStampableError, TooFewLayersError
from lora_core_xnnpack.stamping.sample import Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.streaming.weightless import Missing, stamped
from lowered_whole import assert_equal_sets, assert_equal_together, whole_split, whole_together
from workbench import POLICY_REGISTRY

from lora_core.events import Emit, Event, Noted, StageAdvanced, ignore
from lora_core.quant.policies import parse_policy
from lora_core.quant.policy import QuantPolicy

FP32 = POLICY_REGISTRY["fp32"]
BASE = Missing[WeightlessSet](plans=(), base=None)
INT4 = parse_policy("8da4w", POLICY_REGISTRY, head="4,32", embedding="float")


def derived_alone(layers: LayeredBase, missing: Missing[WeightlessSet], emit: Emit) -> WeightlessSet:
    return stamp_split(layers, missing.plans, emit)


def test_split_programs_equal_a_full_lowering(tmp_path: Path) -> None:
    base = streamed([48] * 11, FP32)  # numbers of one and two digits
    plans = (plan(base, lambda _, name: 2 * (name == "up")),)
    events: list[Event] = []
    derived = stamp_split(LayeredBase.of(base), plans, events.append)
    assert_equal_sets(derived, whole_split(base, plans, tmp_path))
    assert not [event for event in events if isinstance(event, Noted)]


def test_a_base_that_is_cut_wrongly_is_traced_for_itself_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Traced, "bare", lambda self: self)  # with all slots
    base = streamed([48] * 7, FP32)
    plans = (plan(base, lambda _, name: 2 * (name == "up")),)
    events: list[Event] = []
    derived = stamp_split(LayeredBase.of(base), plans, events.append)
    assert_equal_sets(derived, whole_split(base, plans, tmp_path))
    (note,) = [event.message for event in events if isinstance(event, Noted)]
    assert note.startswith("The base program is traced for itself")


def test_a_program_of_several_methods_with_int8_slots_equals_a_full_lowering(tmp_path: Path) -> None:
    base = streamed([64] * 7, INT4)
    plans = (plan(base, lambda _, name: 2 * (name == "down")),)
    events: list[Event] = []
    derived = stamp_together(LayeredBase.of(base), plans, events.append, dtype=INT8)
    assert_equal_together(derived, whole_together(base, plans, tmp_path, dtype=INT8))
    told = [event for event in events if isinstance(event, StageAdvanced)]
    assert [event.done for event in told] == sorted({event.done for event in told})
    assert told[-1].done == told[-1].total


@pytest.mark.parametrize("policy", [FP32, INT4], ids=["fp32", "8da4w"])
def test_no_weight_is_hashed_twice_for_all_samples_and_none_is_held_afterwards(
    monkeypatch: pytest.MonkeyPatch, policy: QuantPolicy
) -> None:
    hashed: Counter[bytes] = Counter()
    real = hashlib.sha256

    def counted(data: bytes = b"") -> Any:
        done = real(data)
        hashed[done.digest()] += 1
        return done

    monkeypatch.setattr(hashlib, "sha256", counted)
    base = streamed([64] * 7, policy)
    layers = LayeredBase.of(base)
    derived = stamp_split(layers, (plan(base, lambda _, name: 2 * (name == "up")),), ignore)
    monkeypatch.undo()
    weights = dict(named_tensors(layers.cut((0, 1)).module))
    forms = [tensor.form for tensor in derived.foundation if tensor.form.path in weights]
    told = {form: hashed[real(stored(weights[form.path], form)).digest()] for form in forms}
    matrices = {form: times for form, times in told.items() if form.part != "scale"}
    assert len(matrices) >= 7
    assert set(matrices.values()) == {1}
    held = weakref.ref(layers.weights), weakref.ref(weights[forms[0].path])
    del layers, weights
    gc.collect()
    assert [each() for each in held] == [None, None]


def test_what_a_cut_keeps_of_the_deeper_graph_is_found_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debug_handle_generator_pass, "DebugHandleGeneratorPass", lambda: lambda module: module)
    with pytest.raises(NotStampableError, match="not what those of shallower ones predict"):
        stamp_split(LayeredBase.of(streamed([48] * 7, FP32)), (), ignore)


def test_layers_that_do_not_repeat_are_all_lowered_and_the_reason_is_told() -> None:
    events: list[Event] = []
    base = streamed([48] * 10, FP32, Dense)
    assert stamped(base, BASE, derived_alone, events.append) is None
    (note,) = [event.message for event in events if isinstance(event, Noted)]
    assert note.startswith("Every layer is lowered, because the others do not follow from a few: ")


def test_layers_of_as_many_kinds_as_layers_are_not_derived() -> None:
    base = streamed([32 + 16 * layer for layer in range(10)], FP32)
    with pytest.raises(NotStampableError, match="no layers repeat"):
        stamp_split(LayeredBase.of(base), (), ignore)


def test_few_layers_are_lowered_as_they_are_without_a_word() -> None:
    events: list[Event] = []
    base = streamed([48] * 3, FP32, Chain)
    with pytest.raises(TooFewLayersError):
        stamp_split(LayeredBase.of(base), (), ignore)
    assert stamped(base, BASE, derived_alone, events.append) is None
    assert not [event for event in events if isinstance(event, Noted)]
