"""Sentinels: values a template's LoRA matrices hold, by which the lowered program is searched for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.layers import LayerInfo
from lora_core_coreml.program.object import Matrix
from lora_core_coreml.storage.blobfile import BlobKey, key_of_array


def attach(module: Any, plan: SlotPlan, layers: Sequence[LayerInfo], dtype: Any) -> dict[BlobKey, tuple[str, Matrix]]:
    """Give every slot of `plan` a LoRA branch of sentinels in `dtype` (torch.float16 or torch.float32).

    Returns the slot and matrix that each sentinel, as it will be stored, stands for. Undone by `models.lora.eject`.
    """
    import torch

    from lora_core.models.injection import inject, lora_layers

    sentinels: dict[BlobKey, tuple[str, Matrix]] = {}
    values = {}
    for number, slot in enumerate(plan.slots):
        a = _sentinel((number, 0), (slot.rank, slot.in_features))
        b = _sentinel((number, 1), (slot.out_features, slot.rank))
        half = dtype == torch.float16
        sentinels[key_of_array(a.astype(np.float16) if half else a)] = (slot.module, "a")
        sentinels[key_of_array(b.astype(np.float16) if half else b)] = (slot.module, "b")
        values[slot.module] = (a, b)
    inject(module, plan, layers, values)
    for _, layer in lora_layers(module):
        layer.lora_a.to(dtype)
        layer.lora_b.to(dtype)
    return sentinels


def _sentinel(seed: tuple[int, int], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return random values that float16 holds exactly; no two sentinels are nearly equal."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16).astype(np.float32)
