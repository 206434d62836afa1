"""The split layout's programs without weights, derived from lowerings of a few layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.events import Emit, Noted, advancing
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import FP32
from lora_core_xnnpack.cache.origins import BaseTensor
from lora_core_xnnpack.lowering.slots import attach, placeholders, stored_placeholders
from lora_core_xnnpack.split.templating import find_template
from lora_core_xnnpack.split.weightless import WeightlessProgram, WeightlessSet, sites_of
from lora_core_xnnpack.stamping import sample
from lora_core_xnnpack.stamping.elements import NotStampableError
from lora_core_xnnpack.stamping.lowerings import Methods, SharedTrace
from lora_core_xnnpack.stamping.sample import Traced
from lora_core_xnnpack.stamping.shallow import LayeredBase
from lora_core_xnnpack.stamping.slot_texts import SlotTexts
from lora_core_xnnpack.stamping.stamping import Stamped, check, deepest, stamp


def stamp_split(
    base: LayeredBase,
    plans: Sequence[SlotPlan],
    emit: Emit,
    *,
    dtype: str = FP32,
    known: WeightlessSet | None = None,
) -> WeightlessSet:
    """Return the base program and a template for each plan, as if the whole base was lowered and its weights taken out.
    Slots are of type `dtype`. `known` is the base program, if it is known.

    Raises `NotStampableError` if they cannot be derived.
    """
    trace = partial(_trace, dtype=dtype)
    for plan in plans:
        check(base, (plan,))  # before anything is lowered in vain
    shared = None if known is not None or not plans else _shared(base, plans[0], trace)
    made = _base(base, trace, emit, dtype, shared) if known is None else known
    for index, plan in enumerate(plans):
        name = "template" if len(plans) == 1 else f"template {index + 1} of {len(plans)}"
        with advancing(emit, f"Lower a few layers of the {name}") as advanced:
            stamped = stamp(base, (plan,), trace, advanced, shared if index == 0 else None)
        program, memory = _program(base, stamped, plan, made.foundation, dtype)
        planned = {**made.planned_memory, f"template/{index}": memory}
        made = attrs.evolve(made, programs=(*made.programs, program), planned_memory=planned)
    return made


def _shared(base: LayeredBase, plan: SlotPlan, trace: Methods) -> SharedTrace:
    """Return the trace that base and template share: that of the template's deepest model."""
    return SharedTrace(base, plan, deepest(base, (plan,)), trace)


def _base(base: LayeredBase, trace: Methods, emit: Emit, dtype: str, shared: SharedTrace | None) -> WeightlessSet:
    """Return the base program, derived from what is cut out of `shared` if that proves itself; if not, it is noted."""
    with advancing(emit, "Lower a few layers of the base program") as advanced:
        stamped = stamp(base, (), trace, advanced, shared)
    if shared is not None:
        shared.proven = stamped.cut
        if not shared.proven:
            emit(Noted(message="The base program is traced for itself: what is cut out of the template's is another"))
    foundation = sample.foundation_of(stamped.lists)
    program, memory = _program(base, stamped, None, foundation, dtype)
    return WeightlessSet(foundation=foundation, programs=(program,), planned_memory={"base": memory})


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
