"""LoRA weights of one use case at the graph's ranks, as numbers and on their grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.plan import SlotPlan
from lora_core_qnn_sim.artifacts.context_binary import lora_dtype
from lora_core_qnn_sim.encodings.grid import Encoding, symmetric
from lora_core_qnn_sim.graph.basis import Basis
from lora_core_qnn_sim.graph.nodes import lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec, LoraSlot, graph_name, lora_a, lora_b

Array = npt.NDArray[Any]


def graph_slots(plan: SlotPlan, basis: Basis, *, copies: int = 1) -> tuple[LoraSlot, ...]:
    """Return the slots of the graph; `copies` rank blocks for a concurrency of that many adapters."""
    slots = []
    for slot in plan.slots:
        layer = graph_name(slot.module)
        inputs, outputs = basis.features(layer, slot.in_features, slot.out_features)
        slots.append(LoraSlot(layer=layer, in_features=inputs, out_features=outputs, rank=slot.rank * copies))
    return tuple(slots)


def real_lora(spec: GraphSpec, adapters: Sequence[PlacedAdapter], basis: Basis) -> dict[str, Array]:
    """Return the parts of a use case's slots as float32, as `PlacedAdapter.values` pads and folds them.

    With `spec.alphas` adapters, each fills its own rank block, which the alpha vector switches; one adapter fills the
    whole of a graph with a single alpha. Weights are brought to the `basis` of the exported base.
    """
    weights = {name: np.zeros(shape, np.float32) for name, shape in lora_weights(spec).items()}
    for index, placed in enumerate(adapters):
        for slot, values in placed.values():
            layer = graph_name(slot.module)
            block = slice(index * slot.rank, (index + 1) * slot.rank)
            weights[lora_a(layer)][block] = basis.a(layer, values["a"])
            weights[lora_b(layer)][:, block] = basis.b(layer, values["b"])
    return weights


def weight_encodings(spec: GraphSpec, weights: Mapping[str, Array]) -> dict[str, Encoding]:
    """Return the symmetric per-tensor grids of LoRA weights."""
    return {name: symmetric(float(np.abs(array).max(initial=0.0)), spec.lora_bits) for name, array in weights.items()}


def quantize_lora(spec: GraphSpec, weights: Mapping[str, Array], encodings: Mapping[str, Encoding]) -> dict[str, Array]:
    """Return LoRA weights as signed integers of the graph's type, saturated to `encodings`."""
    dtype = lora_dtype(spec)
    return {name: encodings[name].quantize(array).astype(dtype) for name, array in weights.items()}


def saturated(weights: Mapping[str, Array], encodings: Mapping[str, Encoding]) -> float:
    """Return the share of non-zero values that lie outside their grid by more than half a step."""
    outside = total = 0
    for name, array in weights.items():
        grid = encodings[name]
        outside += int((np.abs(array) > grid.maximum + grid.scale / 2).sum())
        total += int((array != 0).sum())
    return outside / total if total else 0.0
