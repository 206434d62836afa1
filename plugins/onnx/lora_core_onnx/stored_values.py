"""An adapter's tensors read back from a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lora_core.adapters.slots.kinds import Values
from lora_core.bundle.bundle import Bundle
from lora_core.intake.parsing import parsing
from lora_core_onnx.names import adapter_file, slot_of
from lora_core_onnx.storage.adapter_file import AdapterFile, read_adapter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def stored_values(bundle: Bundle, name: str) -> Mapping[str, Values]:
    """Return A and B by module; raises `BundleError` for a damaged file."""
    return slots_in(read_adapter(bundle.file(adapter_file(name))))


def slots_in(file: AdapterFile) -> Mapping[str, Values]:
    """Read A and B of every slot of `file`; raises `BundleError` if they are not pairs."""
    found: dict[str, dict[str, npt.NDArray[np.float32]]] = {}
    for parameter in file.parameters:
        with parsing(file.path):
            module, part = slot_of(parameter.name)
        found.setdefault(module, {})[part] = file.read(parameter)
    with parsing(file.path):
        if any(set(parts) != {"a", "b"} or len(parts["a"]) != parts["b"].shape[1] for parts in found.values()):
            raise ValueError("A and B of a layer do not belong together")
    return found
