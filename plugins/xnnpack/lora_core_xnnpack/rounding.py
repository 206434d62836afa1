"""What a layer's weight becomes in a program: as it is quantized, told in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from lora_core.backend import ExportJob, RoundWeight
from lora_core.events import Emit
from lora_core.layers import LayerInfo
from lora_core.preparation.rounded import RoundedLayers
from lora_core.quant.fitting import Grid, bfloat16, dequantized, fitted
from lora_core_xnnpack.quant import is_half, quantized_layer

Float32 = npt.NDArray[np.float32]


def rounding(job: ExportJob, work: Path, emit: Emit) -> RoundWeight:
    """Return what gives the weights of `job`'s linear layers; those rounded for their inputs are kept in `work`."""
    assignment = job.policy.assign(job.model.summary.layers)
    kept: RoundedLayers | None = job.options.how_to_round.into(job.model, assignment, work, emit)
    known = frozenset(kept.names) if kept is not None else frozenset()

    def rounded(layer: LayerInfo, weight: Float32) -> Float32:
        scheme = assignment.schemes[layer.name]
        if scheme is None:
            return weight
        if is_half(scheme):
            return weight.astype(np.float16).astype(np.float32)
        if kept is not None and layer.name in known:
            return kept.weight(layer.name)
        if scheme.bits < 8 and job.options.scale_search == "fitted":
            # What torchao is made to call (`searching`), without torch.
            group = scheme.group_size or layer.in_features
            return dequantized(*fitted(weight, Grid(lowest=-8, highest=7, group=group, narrow=bfloat16)))
        import torch

        found = quantized_layer(
            torch.from_numpy(np.ascontiguousarray(weight)), "linear", scheme, scale_search=job.options.scale_search
        ).weight
        scales = found.scale.numpy().reshape(len(weight), -1)
        # XNNPACK stores scales of groups in bfloat16, those of rows in float32.
        return dequantized(found.qdata.numpy(), bfloat16(scales) if scheme.group_size else scales)

    return rounded
