"""What a layer's weight becomes in a program: as it is quantized, told in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from lora_core.backend import ExportJob, RoundWeight
from lora_core.events import Emit
from lora_core.layers import LayerInfo
from lora_core.preparation.rounded import RoundedLayers
from lora_core_coreml.quiet import quiet

Float32 = npt.NDArray[np.float32]


def rounding(job: ExportJob, work: Path, emit: Emit) -> RoundWeight:
    """Return what gives the weights of `job`'s linear layers; those rounded for their inputs are kept in `work`."""
    assignment = job.policy.assign(job.model.summary.layers)
    kept: RoundedLayers | None = job.options.how_to_round.into(job.model, assignment, work, emit)
    known = frozenset(kept.names) if kept is not None else frozenset()

    def rounded(layer: LayerInfo, weight: Float32) -> Float32:
        import torch

        from lora_core_coreml.quant import quantized, quantizes

        scheme = assignment.schemes[layer.name]
        if kept is not None and layer.name in known:
            return kept.weight(layer.name)
        tensor = torch.from_numpy(np.ascontiguousarray(weight)).to(
            torch.float16 if job.options.float16 else torch.float32
        )
        if scheme is not None and quantizes(scheme):
            with quiet():
                tensor = quantized(tensor, "linear", scheme).dequantize()
        found: Float32 = tensor.float().numpy()
        return found

    return rounded
