"""The graph as an ONNX model for the vendor's converter: static shapes, float weights that lie on their grids.

Activations and weights have the names that the encodings use, so that the converter finds one for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core_qnn_sim.graph.nodes import lora_weights
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.handover import names
from lora_core_qnn_sim.handover.decoder import DecoderModel
from lora_core_qnn_sim.runtime.weights import BaseWeights

Array = npt.NDArray[Any]


def write_model(directory: Path, spec: GraphSpec, base: BaseWeights, lora: Mapping[str, Array]) -> None:
    """Write model and weights of the graph of `spec` into `directory`; A and B that `lora` does not name are zero.

    One call takes `spec.input_len` tokens; a weight at a time is in memory.
    """
    graph = DecoderModel(spec)
    graph.add_all()
    with (directory / names.MODEL_DATA).open("wb") as file:
        for name in graph.weights:
            graph.store(name, _weight(name, spec, base, lora), file)
    (directory / names.MODEL).write_bytes(graph.serialized())


def _weight(name: str, spec: GraphSpec, base: BaseWeights, lora: Mapping[str, Array]) -> Array:
    shapes = lora_weights(spec)
    if name not in shapes:
        return base.real(name)
    return lora[name] if name in lora else np.zeros(shapes[name], np.float32)
