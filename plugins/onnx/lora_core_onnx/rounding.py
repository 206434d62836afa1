"""What a layer's weight becomes in a model: as it is quantized, told in float32."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.backend import ExportJob, RoundWeight
from lora_core.events import Emit
from lora_core.layers import LayerInfo
from lora_core.preparation.rounded import RoundedLayers
from lora_core_onnx.graph.weights import rounded
from lora_core_onnx.options import OnnxOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def rounding(job: ExportJob, work: Path, emit: Emit) -> RoundWeight:
    """Return what gives the weights of `job`'s linear layers; those rounded for their inputs are kept in `work`."""
    options: OnnxOptions = job.options
    assignment = job.policy.assign(job.model.summary.layers)
    kept: RoundedLayers | None = options.how_to_round.into(job.model, assignment, work, emit)
    known = frozenset(kept.names) if kept is not None else frozenset()

    def stored(layer: LayerInfo, weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        if kept is not None and layer.name in known:
            return kept.weight(layer.name)
        return rounded(weight, assignment.schemes[layer.name])

    return stored
