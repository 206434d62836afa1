"""Programs without weights as a lowering of every layer gives them: what derived ones are held against."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from blocks_model import copied
from lora_core_xnnpack.adapter_dtype import FP32
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.cache.origins import BaseTensor
from lora_core_xnnpack.files.data_file import stored_blobs
from lora_core_xnnpack.files.named_blobs import NamedBlob
from lora_core_xnnpack.inputs.lowering import lower_with_inputs
from lora_core_xnnpack.multimethod.lowering import lower_together
from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
from lora_core_xnnpack.split.lowering import lower_all
from lora_core_xnnpack.split.weightless import WeightlessSet
from lora_core_xnnpack.streaming.base import StreamedBase
from lora_core_xnnpack.streaming.stand_in import stand_in

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.events import ignore


def whole_split(base: StreamedBase, plans: Sequence[SlotPlan], out: Path) -> WeightlessSet:
    model = stand_in(base, copied(base.outline))
    programs, planned = lower_all(model, plans, out, ignore)
    data = (out / FOUNDATION_FILE).read_bytes()
    return WeightlessSet.strip(model.module, programs, planned, data, stored_blobs(data, out))


def whole_together(
    base: StreamedBase, plans: Sequence[SlotPlan], out: Path, *, dtype: str = FP32
) -> WeightlessTogether:
    model = stand_in(base, copied(base.outline))
    lowered = lower_together(model, plans, out, dtype=dtype)
    data = (out / FOUNDATION_FILE).read_bytes()
    return WeightlessTogether.strip(model.module, lowered, data, stored_blobs(data, out))


def whole_with_inputs(base: StreamedBase, plans: Sequence[SlotPlan], out: Path) -> WeightlessTogether:
    model = stand_in(base, copied(base.outline))
    lowered = lower_with_inputs(model, plans, out)
    data = (out / FOUNDATION_FILE).read_bytes()
    return WeightlessTogether.strip(model.module, lowered, data, stored_blobs(data, out))


def assert_equal_sets(derived: WeightlessSet, whole: WeightlessSet) -> None:
    assert derived.foundation == whole.foundation
    assert derived.planned_memory == whole.planned_memory
    blobs = _stored(whole.foundation)
    for ours, theirs in zip(derived.fill(blobs), whole.fill(blobs), strict=True):
        assert ours.program == theirs.program
        assert ours.table.to_json() == theirs.table.to_json()


def assert_equal_together(derived: WeightlessTogether, whole: WeightlessTogether) -> None:
    assert derived.foundation == whole.foundation
    blobs = _stored(whole.foundation)
    assert derived.fill(blobs) == whole.fill(blobs)


def _stored(tensors: Sequence[BaseTensor]) -> tuple[NamedBlob, ...]:
    """Return what some base stores: no two tensors alike."""
    keys = [each.name or each.prefix + hashlib.sha256(repr(each).encode()).hexdigest() for each in tensors]
    return tuple(NamedBlob(key=key, offset=0, size=each.size) for key, each in zip(keys, tensors, strict=True))
