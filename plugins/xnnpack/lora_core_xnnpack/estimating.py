"""What an export will write, from the configuration alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lora_core.adapters.slots.kinds import FLOAT32_SIZE
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import Estimated
from lora_core.layers import LayerInfo
from lora_core.quant.policy import Scheme

_GROUP_SCALE = 2
"""Bytes of a group's scale in a linear layer (bfloat16); one of a whole channel, or of an embedding, is float32."""
_PROGRAM_BYTES = 1500
"""Of a program for each linear layer: tables of its delegate, its tensors and calls, seen on ExecuTorch 1.5.1."""


def estimate(job: ExportJob) -> Estimated:
    """Return about how many bytes the foundation, the programs and the adapters of `job` will take."""
    programs = 1 + len(job.plans) + len(job.adapters)
    linears = sum(layer.kind == "linear" for layer in job.model.summary.layers)
    adapters = sum(_matrices(adapter.plan) for adapter in job.adapters)
    return Estimated(written=foundation_bytes(job) + programs * linears * _PROGRAM_BYTES + adapters)


def foundation_bytes(job: ExportJob) -> int:
    """Return the bytes of the base's layers as stored: all but norms, rotary tables and the file's front."""
    layers = job.model.summary.layers
    schemes = job.policy.assign(layers).schemes
    return sum(_stored(layer, schemes) for layer in layers)


def _stored(layer: LayerInfo, schemes: Mapping[str, Scheme | None]) -> int:
    weights, scheme = layer.in_features * layer.out_features, schemes[layer.name]
    bias = FLOAT32_SIZE * layer.out_features if layer.has_bias else 0
    if scheme is None:
        shared = layer.tied_to is not None and schemes[layer.tied_to] is None
        return bias + (0 if shared else FLOAT32_SIZE * weights)
    rows = layer.in_features if layer.kind == "embedding" else layer.out_features
    scales = weights // scheme.group_size if scheme.group_size else rows
    small = layer.kind == "linear" and scheme.group_size
    return bias + weights * scheme.bits // 8 + scales * (_GROUP_SCALE if small else FLOAT32_SIZE)


def _matrices(plan: SlotPlan) -> int:
    return FLOAT32_SIZE * sum(math.prod(part.shape) for slot in plan.slots for part in slot.parts)
