"""Slots of a template in a torch module: filled with placeholders, in the type that adapters are stored in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_core.adapters.slots.kinds import Values
from lora_core.adapters.slots.placeholders import placeholder_values
from lora_core.adapters.slots.plan import SlotPlan
from lora_core_xnnpack.adapter_dtype import (
    ADAPTER_SCHEME,
    FP16,
    FP32,
    INT8,
    SCALE,
    StoredParts,
    in_half,
    quantized_parts,
)

if TYPE_CHECKING:
    import torch

    from lora_core.models.base import BaseModel

Matrix = npt.NDArray[np.float32]


def placeholders(plan: SlotPlan, dtype: str, index: int = 0) -> dict[str, Values]:
    """Return placeholder values for the plan number `index` of a program; those of two plans differ.

    Equal tensors would be stored once, and the order of the second plan's would be lost.
    """

    def another(array: Matrix) -> Matrix:
        turned = np.roll(array, index) if dtype == INT8 else array  # as int8, rows times a factor are the same
        return np.ascontiguousarray(turned * np.float32(1 + index)) if index else array

    return {
        module: {part: another(array) for part, array in parts.items()}
        for module, parts in placeholder_values(plan).items()
    }


def attach(
    model: BaseModel, module: torch.nn.Module, plan: SlotPlan, values: Mapping[str, Values], dtype: str
) -> torch.nn.Module:
    """Fill the slots of `plan` in `module`, one like that of `model`, with `values`; returns the module.

    With the type `int8` the matrices among them are quantized as torchao does it, with `fp16` they are rounded. Undone
    by `models.injection.eject`.
    """
    from lora_core.models.injection import inject, part_parameters

    module = inject(module, plan, model.paths, values)
    if dtype == FP32:
        return module
    paths = {
        part_parameters(module, model.paths[slot.module])[part].removesuffix(".weight")
        for slot in plan.slots
        for part in quantized_parts(slot)
    }
    if dtype == INT8:
        from lora_core_xnnpack.quant import quantize_linear

        quantize_linear(module, ADAPTER_SCHEME, paths, searched=False)
    else:
        from lora_core_xnnpack.lowering.half_layers import HalfLinear
        from lora_core_xnnpack.quant import put_layer

        for path in paths:
            put_layer(module, path, HalfLinear(module.get_submodule(path).weight))
    return module


def stored_placeholders(plan: SlotPlan, values: Mapping[str, Values], dtype: str) -> dict[str, StoredParts]:
    """Return placeholder `values` as a program stores them: with scales as parts of their own, where it has them."""
    found: dict[str, dict[str, npt.NDArray[Any]]] = {module: dict(parts) for module, parts in values.items()}
    if dtype == INT8:
        for slot in plan.slots:
            parts = found[slot.module]
            for part in quantized_parts(slot):
                parts[part], parts[part + SCALE] = _quantized(values[slot.module][part])
    if dtype == FP16:
        for slot in plan.slots:
            found[slot.module] |= {part: in_half(values[slot.module][part]) for part in quantized_parts(slot)}
    return dict(found)


def _quantized(array: Matrix) -> tuple[npt.NDArray[np.int8], Matrix]:
    import torch

    from lora_core_xnnpack.quant import quantized_layer

    weight = quantized_layer(torch.from_numpy(array), "linear", ADAPTER_SCHEME, scale_search="affine").weight
    return weight.qdata.numpy(), weight.scale.reshape(-1).numpy()
