"""A hand-over from a stored bundle: also of adapters that were added after the export.

LoRA weights are those of the sections, on their grids: quantized again under the encodings beside them, they give the
same integers.
"""

from __future__ import annotations

from pathlib import Path

from lora_core.bundle.bundle import Bundle
from lora_core_qnn_sim.handover.documents import WeightsKey
from lora_core_qnn_sim.handover.stored import StoredAdapters
from lora_core_qnn_sim.handover.writer import write_handover


def handover_from_bundle(bundle: Bundle, directory: Path, weights_key: WeightsKey = "safetensors") -> list[str]:
    """Write the vendor's files for every adapter of `bundle` and return the adapters' names.

    Raises `UnsupportedError` for a bundle whose base is not the checkpoint's own, or that has no sections.
    """
    stored = StoredAdapters.read(bundle)
    write_handover(
        directory,
        stored.context,
        stored.foundation,
        stored.encodings,
        stored.weights,
        stored.groups,
        bundle.manifest.base,
        weights_key,
    )
    return list(stored.encodings)
