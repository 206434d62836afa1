"""The program whose inputs adapters are, without weights, derived from lowerings of a few layers."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.events import Emit, advancing
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import FP32
from lora_core_xnnpack.inputs.lowering import taken, values_of
from lora_core_xnnpack.multimethod.lowering import LoweredTogether, methods_of
from lora_core_xnnpack.multimethod.weightless import WeightlessTogether
from lora_core_xnnpack.stamping import sample
from lora_core_xnnpack.stamping.sample import Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.stamping.slot_texts import SlotTexts
from lora_core_xnnpack.stamping.stamping import stamp


def stamp_with_inputs(base: LayeredBase, plans: Sequence[SlotPlan], emit: Emit) -> WeightlessTogether:
    """Return the program, as lowering the whole base and taking its weights out would.

    Raises `NotStampableError` if it cannot be derived, `DependsOnWeightsError` if it cannot be put together again.
    """
    with advancing(emit, "Lower a few layers of the base, alone and with adapters as inputs") as advanced:
        stamped = stamp(base, plans, _trace, advanced)
    texts = SlotTexts.of(base, ())
    program, planned = stamped.build(texts)
    foundation = sample.foundation_of(stamped.lists)
    keys = sample.slots_of(stamped.lists)
    order = {number: [(key.path, key.part) for key in keys if key.plan == number] for number in range(len(plans))}
    lowered = LoweredTogether(program=program, table=taken(plans, base.base.model.paths, order), planned_memory=planned)
    return WeightlessTogether.of(lowered, foundation, [texts.blob(tensor) for tensor in foundation])


def _trace(model: BaseModel, plans: Sequence[SlotPlan]) -> Traced:
    return Traced.of(methods_of(model, plans, values_of(plans), FP32), model, (), takes_slots=True)
