"""The split layout's programs without weights, derived from lowerings of a few layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.events import Emit, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import FP32
from lora_core_xnnpack.cache.origins import BaseTensor
from lora_core_xnnpack.lowering.slots import attach, placeholders, stored_placeholders
from lora_core_xnnpack.split.templating import find_template
from lora_core_xnnpack.split.weightless import WeightlessProgram, WeightlessSet, sites_of
from lora_core_xnnpack.stamping import sample
from lora_core_xnnpack.stamping.elements import NotStampableError
from lora_core_xnnpack.stamping.sample import Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.stamping.slot_texts import SlotTexts
from lora_core_xnnpack.stamping.stamping import Stamped, check, stamp


def stamp_split(base: LayeredBase, plans: Sequence[SlotPlan], emit: Emit, *, dtype: str = FP32) -> WeightlessSet:
    """Return the base program and a template for each plan, as if the whole base was lowered and its weights taken out.
    Slots are of type `dtype`.

    Raises `NotStampableError` if they cannot be derived.
    """
    trace = partial(_trace, dtype=dtype)
    for plan in plans:
        check(base, (plan,))  # before anything is lowered in vain
    with stage(emit, "Lower a few layers of the base program"):
        stamped = [stamp(base, (), trace)]
    for index, plan in enumerate(plans):
        name = "template" if len(plans) == 1 else f"template {index + 1} of {len(plans)}"
        with stage(emit, f"Lower a few layers of the {name}"):
            stamped.append(stamp(base, (plan,), trace))
    foundation = sample.foundation_of(stamped[0].lists)
    programs, planned = [], {}
    for number, (each, its_plan) in enumerate(zip(stamped, (None, *plans), strict=True)):
        program, memory = _program(base, each, its_plan, foundation, dtype)
        programs.append(program)
        planned["base" if its_plan is None else f"template/{number - 1}"] = memory
    return WeightlessSet(foundation=foundation, programs=tuple(programs), planned_memory=planned)


def _trace(model: BaseModel, plans: Sequence[SlotPlan], *, dtype: str) -> Traced:
    stored = []
    module = model.module
    for plan in plans:
        values = placeholders(plan, dtype)
        module = attach(model, module, plan, values, dtype)
        stored.append(stored_placeholders(plan, values, dtype))
    return Traced.of({"forward": module}, model, stored)


def _program(
    base: LayeredBase, stamped: Stamped, plan: SlotPlan | None, foundation: Sequence[BaseTensor], dtype: str
) -> tuple[WeightlessProgram, dict[str, int]]:
    missing = set(sample.foundation_of(stamped.lists)) - set(foundation)
    if missing:
        raise NotStampableError(f"the template reads {len(missing)} tensors that the base does not")
    stored = {} if plan is None else stored_placeholders(plan, placeholders(plan, dtype), dtype)
    texts = SlotTexts.of(base, [stored])
    program, planned = stamped.build(texts)
    template = find_template(program, [texts(key) for key in sample.slots_of(stamped.lists)], stored, {})
    sites = sites_of(template, [texts.blob(each) for each in foundation])
    return WeightlessProgram(template=template, sites=sites), planned
