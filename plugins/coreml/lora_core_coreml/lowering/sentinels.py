"""Sentinels: values a template's slots hold, by which the lowered program is searched for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.plan import SlotPlan
from lora_core_coreml.program.object import SlotPart
from lora_core_coreml.storage.blobfile import BlobKey, key_of_array

if TYPE_CHECKING:
    import torch

Sentinels = Mapping[BlobKey, SlotPart]


def attach(module: torch.nn.Module, plan: SlotPlan, paths: Mapping[str, str], *, float16: bool) -> Sentinels:
    """Fill every slot of `plan` with sentinels, in float16 or float32. Undone by `models.injection.eject`.

    Returns the slot's part that each sentinel, as it will be stored, stands for.
    """
    sentinels: dict[BlobKey, SlotPart] = {}
    values: dict[str, Values] = {}
    for number, slot in enumerate(plan.slots):
        drawn = {part.name: _sentinel((number, index), part.shape) for index, part in enumerate(slot.parts)}
        for name, array in drawn.items():
            key = key_of_array(array.astype(np.float16) if float16 else array)
            sentinels[key] = SlotPart(module=slot.module, part=name)
        values[slot.module] = {**values.get(slot.module, {}), **drawn}
    fill(module, plan, paths, values, float16=float16)
    return sentinels


def fill(
    module: torch.nn.Module,
    plan: SlotPlan,
    paths: Mapping[str, str],
    values: Mapping[str, Values],
    *,
    float16: bool,
) -> None:
    """Wrap the layers of `plan` in `module` with `values`, in the precision that a program stores them in."""
    import torch

    from lora_core.models.injection import inject, slot_parameters

    inject(module, plan, paths, values)
    for name in slot_parameters(module):
        parameter = module.get_parameter(name)
        parameter.data = parameter.data.to(torch.float16 if float16 else torch.float32)


def _sentinel(seed: tuple[int, int], shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return random values that float16 holds exactly; no two sentinels are nearly equal."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)
