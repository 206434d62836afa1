"""The multi-method program without weights, derived from lowerings of a few layers."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.events import Emit, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.files.program import ProgramParts
from lora_core_xnnpack.multimethod.lowering import LoweredTogether, find_relocations, method_placeholders, methods_of
from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
from lora_core_xnnpack.stamping import sample
from lora_core_xnnpack.stamping.sample import Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.stamping.slot_texts import SlotTexts
from lora_core_xnnpack.stamping.stamping import stamp


def stamp_together(base: LayeredBase, plans: Sequence[SlotPlan], emit: Emit) -> WeightlessTogether:
    """Return the program, as lowering the whole base and taking its weights out would.

    Raises `NotStampableError` if it cannot be derived, `DependsOnWeightsError` if it cannot be put together again.
    """
    with stage(emit, "Lower a few layers of the base and the templates together"):
        stamped = stamp(base, plans, _trace)
    placeholders = method_placeholders(plans)
    texts = SlotTexts.of(base, list(placeholders.values()))
    program, planned = stamped.build(texts)
    foundation = sample.foundation_of(stamped.lists)
    order = [texts(key) for key in sample.slots_of(stamped.lists)]
    lowered = LoweredTogether(
        program=program,
        table=find_relocations(ProgramParts.parse(program), order, placeholders, {}),
        planned_memory=planned,
    )
    return WeightlessTogether.of(lowered, foundation, [texts.blob(tensor) for tensor in foundation])


def _trace(model: BaseModel, plans: Sequence[SlotPlan]) -> Traced:
    placeholders = method_placeholders(plans)
    return Traced.of(methods_of(model, plans, placeholders), model, list(placeholders.values()))
