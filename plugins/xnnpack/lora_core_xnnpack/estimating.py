"""What an export will write, from the configuration alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from lora_core.adapters.slots.kinds import FLOAT32_SIZE
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.events import Estimated
from lora_core.layers import LayerInfo
from lora_core.models.decoders import architecture_of
from lora_core.models.supported_families import FAMILIES
from lora_core.quant.policy import Scheme

_GROUP_SCALE = 2
"""Bytes of a group's scale in a linear layer (bfloat16); one of a whole channel, or of an embedding, is float32."""
_PROGRAM_BYTES = 1500
"""Of a program for each linear layer: tables of its delegate, its tensors and calls, seen on ExecuTorch 1.5.1."""
_TOOLS = 650_000_000
"""What torch, ExecuTorch and torchao take, the graphs of the lowering, and pages of the checkpoint: peaks in fp32 were
439 to 448 MB for models of width 64 (`benchmarks/depth.py`), 540 MB for SmolLM2-135M and 700 MB for Qwen3-0.6B
(`benchmarks/first_export.py`)."""
_PACKING = 3
"""Bytes that a value of a quantized weight takes while ExecuTorch 1.5.1 packs it (`convert_to_qc4w`)."""
_FEWEST, _DEEPEST = 7, 4
"""Bases of so many blocks are derived from models of fewer, the deepest of so many, if all are alike."""
_BLOCK = re.compile(r"\.(\d+)\.")


def estimate(job: ExportJob) -> Estimated:
    """Return about how many bytes `job` will write, foundation, programs and adapters, and hold at most."""
    programs = 1 + len(job.plans) + len(job.adapters)
    linears = sum(layer.kind == "linear" for layer in job.model.summary.layers)
    bits = 32 if job.policy.lora is None else job.policy.lora.bits
    adapters = sum(_matrices(adapter.plan) for adapter in job.adapters) * bits // 32
    written = foundation_bytes(job) + programs * linears * _PROGRAM_BYTES + adapters
    return Estimated(written=written, memory=_most_held(job))


def _most_held(job: ExportJob) -> int | None:
    """Return about how many bytes are held at once; None for a module that a caller or a generic source brings, whose
    layers none counts, and for one with experts, of which no peak was seen.

    Stand-ins, what is stored of them, and the largest weight while it is packed. Of a float stand-in nearly all is
    zeros that take no memory, and models that are cut out of a deeper base store it from where it is.
    """
    if job.model.summary.family not in {family.name for family in FAMILIES} or _expert_bytes(job):
        return None
    layers = job.model.summary.layers
    blocks = {layer.name: int(found[1]) if (found := _BLOCK.search(layer.name)) else 0 for layer in layers}
    derived = len(set(blocks.values())) >= _FEWEST
    schemes = job.policy.assign(layers).schemes
    lowered = [layer for layer in layers if not derived or blocks[layer.name] < _DEEPEST]
    quantized = [layer for layer in lowered if (scheme := schemes[layer.name]) is not None and scheme.bits <= 8]
    linear = [layer for layer in quantized if layer.kind == "linear"]
    held = sum(_held(layer, schemes) for layer in (quantized if derived else lowered))
    stored = sum(_stored(layer, schemes) for layer in (linear if derived else lowered))
    packed = max(map(_weights, linear), default=0)
    return _TOOLS + held + stored + _PACKING * packed + sum(_matrices(plan) for plan in job.plans)


def _held(layer: LayerInfo, schemes: Mapping[str, Scheme | None]) -> int:
    """Return the bytes of a layer's stand-in: torchao keeps a value of a quantized linear layer in a byte."""
    scheme = schemes[layer.name]
    if scheme is None or scheme.bits > 8 or layer.kind == "embedding":
        return _stored(layer, schemes)
    return _stored(layer, schemes) + _weights(layer) * (8 - scheme.bits) // 8


def _weights(layer: LayerInfo) -> int:
    return layer.in_features * layer.out_features


def foundation_bytes(job: ExportJob) -> int:
    """Return the bytes of the base's layers and experts as stored: all but norms, rotary tables and the front."""
    layers = job.model.summary.layers
    schemes = job.policy.assign(layers).schemes
    return _expert_bytes(job) + sum(_stored(layer, schemes) for layer in layers)


def _expert_bytes(job: ExportJob) -> int:
    architecture = architecture_of(job.model.summary)
    return 0 if architecture is None else FLOAT32_SIZE * architecture.expert_values


def _stored(layer: LayerInfo, schemes: Mapping[str, Scheme | None]) -> int:
    weights, scheme = layer.in_features * layer.out_features, schemes[layer.name]
    bias = FLOAT32_SIZE * layer.out_features if layer.has_bias else 0
    if scheme is None or scheme.bits > 8:
        shared = layer.tied_to is not None and schemes[layer.tied_to] == scheme
        size = FLOAT32_SIZE if scheme is None else scheme.bits // 8
        return bias + (0 if shared else size * weights)
    rows = layer.in_features if layer.kind == "embedding" else layer.out_features
    scales = weights // scheme.group_size if scheme.group_size else rows
    small = layer.kind == "linear" and scheme.group_size
    return bias + weights * scheme.bits // 8 + scales * (_GROUP_SCALE if small else FLOAT32_SIZE)


def _matrices(plan: SlotPlan) -> int:
    return FLOAT32_SIZE * sum(math.prod(part.shape) for slot in plan.slots for part in slot.parts)
