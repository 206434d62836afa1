"""Programs derived from a few layers are those of a full lowering, byte for byte, or are not derived."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import pytest
from blocks_model import Chain, Dense, copied, plan, streamed
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.cache.origins import BaseTensor
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.named_blobs import NamedBlob
from lora_core_xnnpack.multimethod.lowering import lower_together
from lora_core_xnnpack.multimethod.stamping import stamp_together
from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
from lora_core_xnnpack.split.lowering import lower_all
from lora_core_xnnpack.split.stamping import stamp_split
from lora_core_xnnpack.split.weightless import WeightlessSet
from lora_core_xnnpack.stamping.elements import NotStampableError, TooFewLayersError
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.streaming.base import StreamedBase
from lora_core_xnnpack.streaming.stand_in import stand_in
from lora_core_xnnpack.streaming.weightless import stamped
from workbench import POLICY_REGISTRY

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.events import Event, Noted, ignore

FP32 = POLICY_REGISTRY["fp32"]
INT4 = parse_policy("8da4w", POLICY_REGISTRY, head="4,32", embedding="float")


def stored(tensors: Sequence[BaseTensor]) -> tuple[NamedBlob, ...]:
    """Return what some base stores: no two tensors alike."""
    keys = [each.name or each.prefix + hashlib.sha256(repr(each).encode()).hexdigest() for each in tensors]
    return tuple(NamedBlob(key=key, offset=0, size=each.size) for key, each in zip(keys, tensors, strict=True))


def whole_split(base: StreamedBase, plans: Sequence[SlotPlan], out: Path) -> WeightlessSet:
    model = stand_in(base, copied(base.outline))
    programs, planned = lower_all(model, plans, out, ignore)
    data = (out / FOUNDATION_FILE).read_bytes()
    return WeightlessSet.strip(model.module, programs, planned, data, stored_blobs(data, out))


def assert_equal_sets(derived: WeightlessSet, whole: WeightlessSet) -> None:
    assert derived.foundation == whole.foundation
    assert derived.planned_memory == whole.planned_memory
    blobs = stored(whole.foundation)
    for ours, theirs in zip(derived.fill(blobs), whole.fill(blobs), strict=True):
        assert ours.program == theirs.program
        assert ours.table.to_json() == theirs.table.to_json()


def test_split_programs_equal_a_full_lowering(tmp_path: Path) -> None:
    base = streamed([48] * 13, INT4)
    plans = (plan(base, lambda _, name: 2 * (name == "up")),)
    derived = stamp_split(LayeredBase.of(base), plans, ignore)
    assert_equal_sets(derived, whole_split(base, plans, tmp_path))


def test_a_program_of_several_methods_equals_a_full_lowering(tmp_path: Path) -> None:
    base = streamed([64] * 13, INT4)
    plans = (plan(base, lambda _, name: 2 * (name == "down")),)
    derived = stamp_together(LayeredBase.of(base), plans, ignore)
    model = stand_in(base, copied(base.outline))
    lowered = lower_together(model, plans, tmp_path)
    data = (tmp_path / FOUNDATION_FILE).read_bytes()
    whole = WeightlessTogether.strip(model.module, lowered, data, stored_blobs(data, tmp_path))
    assert derived.foundation == whole.foundation
    blobs = stored(whole.foundation)
    assert derived.fill(blobs) == whole.fill(blobs)


def test_layers_that_do_not_repeat_are_all_lowered_and_the_reason_is_told() -> None:
    events: list[Event] = []
    base = streamed([48] * 13, FP32, Dense)
    assert stamped(base, lambda layers, emit: stamp_split(layers, (), emit), events.append) is None
    (note,) = [event.message for event in events if isinstance(event, Noted)]
    assert note.startswith("Every layer is lowered, because the others do not follow from a few: ")


def test_layers_of_as_many_kinds_as_layers_are_not_derived() -> None:
    base = streamed([32 + 16 * layer for layer in range(13)], FP32)
    with pytest.raises(NotStampableError, match="no layers repeat"):
        stamp_split(LayeredBase.of(base), (), ignore)


def test_few_layers_are_lowered_as_they_are_without_a_word() -> None:
    events: list[Event] = []
    base = streamed([48] * 3, FP32, Chain)
    with pytest.raises(TooFewLayersError):
        stamp_split(LayeredBase.of(base), (), ignore)
    assert stamped(base, lambda layers, emit: stamp_split(layers, (), emit), events.append) is None
    assert not [event for event in events if isinstance(event, Noted)]
