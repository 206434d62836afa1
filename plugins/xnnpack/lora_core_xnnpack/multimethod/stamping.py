"""The multi-method program without weights, derived from lowerings of a few layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.events import Emit, advancing
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import FP32
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.multimethod.lowering import (
    LoweredTogether,
    find_relocations,
    method_placeholders,
    methods_of,
    stored_by_method,
)
from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
from lora_core_xnnpack.stamping import sample
from lora_core_xnnpack.stamping.sample import Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.stamping.slot_texts import SlotTexts
from lora_core_xnnpack.stamping.stamping import stamp


def stamp_together(
    base: LayeredBase, plans: Sequence[SlotPlan], emit: Emit, *, dtype: str = FP32
) -> WeightlessTogether:
    """Return the program, as lowering the whole base and taking its weights out would; slots are of type `dtype`.

    Raises `NotStampableError` if it cannot be derived, `DependsOnWeightsError` if it cannot be put together again.
    """
    with advancing(emit, "Lower a few layers of the base and the templates together") as advanced:
        stamped = stamp(base, plans, partial(_trace, dtype=dtype), advanced)
    stored = stored_by_method(plans, method_placeholders(plans, dtype), dtype)
    texts = SlotTexts.of(base, list(stored.values()))
    program, planned = stamped.build(texts)
    foundation = sample.foundation_of(stamped.lists)
    order = [texts(key) for key in sample.slots_of(stamped.lists)]
    lowered = LoweredTogether(
        program=program,
        table=find_relocations(ProgramParts.parse(program), order, stored, {}),
        planned_memory=planned,
    )
    return WeightlessTogether.of(lowered, foundation, [texts.blob(tensor) for tensor in foundation])


def _trace(model: BaseModel, plans: Sequence[SlotPlan], *, dtype: str) -> Traced:
    values = method_placeholders(plans, dtype)
    stored = stored_by_method(plans, values, dtype)
    return Traced.of(methods_of(model, plans, values, dtype), model, list(stored.values()))
