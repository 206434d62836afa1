"""Adapters as inputs of the model: as they are stored, scaled, or several joined along their ranks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lora_core.adapters.slots.kinds import Values
from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.runtime.selection import Selection
from lora_core.runtime.slot_inputs import joined
from lora_core_onnx.library import onnxruntime
from lora_core_onnx.names import adapter_file, lora_input
from lora_core_onnx.storage.adapter_file import read_adapter, version_of
from lora_core_onnx.stored_values import slots_in


class AdapterShelf:
    """The adapters of a bundle that were asked for, each read once."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._read: dict[str, Mapping[str, Values]] = {}

    def inputs(self, selection: Selection, known: Collection[str]) -> dict[str, Any]:
        """Return the values of the model's inputs for `selection`, of those that are `known`; the base has none.

        Raises `BundleError` for a file of another base or model, and for a damaged one.
        """
        library = onnxruntime()

        parts = [(self._slots(name, known), strength) for name, strength in selection.strengths.items() if strength]
        return {
            lora_input(module, part): library.OrtValue.ortvalue_from_numpy(value)
            for module in dict.fromkeys(module for slots, _ in parts for module in slots)
            for part, value in joined(
                [(slots[module], strength) for slots, strength in parts if module in slots]
            ).items()
        }

    def keep(self, names: Iterable[str]) -> None:
        """Forget every adapter but `names`."""
        kept = set(names)
        self._read = {name: slots for name, slots in self._read.items() if name in kept}

    def clear(self) -> None:
        """Forget every adapter."""
        self._read.clear()

    def _slots(self, name: str, known: Collection[str]) -> Mapping[str, Values]:
        if name not in self._read:
            self._read[name] = _read(self._bundle, name, known)
        return self._read[name]


def _read(bundle: Bundle, name: str, known: Collection[str]) -> Mapping[str, Values]:
    file = read_adapter(bundle.file(adapter_file(name)))
    if file.model_version != version_of(bundle.manifest.foundation):
        raise BundleError(
            f"The file of adapter {name!r} was made for another base",
            where=str(file.path),
            remedy="Remove it and add it again from its source.",
        )
    foreign = sorted(parameter.name for parameter in file.parameters if parameter.name not in known)
    if foreign:
        raise BundleError(
            f"The model has no input {foreign[0]!r} for adapter {name!r}",
            where=str(file.path),
            remedy="Remove it and add it again from its source.",
        )
    return slots_in(file)
