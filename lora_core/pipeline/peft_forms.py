"""Adapters as peft itself can open them, for a reference that is computed by it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.peft.spelling import PEFT_PREFIX
from lora_core.adapters.peft.writing import CONFIG, WEIGHTS, write_peft
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import AdapterError, InputError, UnsupportedError
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.layers import ModelSummary
from lora_core.tensors import open_tensors


@attrs.define(kw_only=True)
class PeftForms:
    """Writes adapters that peft would not open, or open without their weights, as PEFT saves them, into `scratch`."""

    base: ModelSummary
    formats: Sequence[AdapterFormat]
    scratch: Path

    def of(self, references: Sequence[AdapterReference]) -> tuple[AdapterReference, ...]:
        """Return `references` to what peft can open; one that cannot be written as PEFT stays as it is."""
        return tuple(self._form(reference) for reference in references)

    def _form(self, reference: AdapterReference) -> AdapterReference:
        if reference.parts:
            parts = tuple(
                attrs.evolve(part, of=str(self._directory(Path(part.of)).absolute())) if part.is_directory else part
                for part in reference.parts
            )
            return attrs.evolve(reference, parts=parts)
        if reference.directory is not None:
            return attrs.evolve(reference, directory=self._directory(reference.directory))
        if self._is_plain(reference.weights, reference.config):
            return reference
        written = self._written(attrs.evolve(reference, strength=1.0))
        return reference if written is None else attrs.evolve(reference, directory=written, weights=None, config=None)

    def _directory(self, path: Path) -> Path:
        if self._is_plain(path / WEIGHTS, path / CONFIG):
            return path
        return self._written(AdapterReference(name="stored", directory=path)) or path

    def _written(self, reference: AdapterReference) -> Path | None:
        directory = self.scratch / f"adapter-{len(list(self.scratch.iterdir()))}"
        directory.mkdir()
        try:
            (adapter,) = read_adapters([reference], self.base, self.formats)
            write_peft(adapter, directory)
        except (AdapterError, UnsupportedError):
            return None
        return directory

    def _is_plain(self, weights: Path | None, config: Path | None) -> bool:
        """Say whether peft finds a module of the base for every tensor: where it finds none it loads nothing."""
        if weights is None or config is None or not (weights.is_file() and config.is_file()):
            return False
        if b'"peft_type"' not in read_regular(config, limits.CONFIG, InputError):
            return False
        names = frozenset(self.base.module_names)
        try:
            return all(_is_of(tensor.name, names) for tensor in open_tensors(weights))
        except InputError:
            return False


def _is_of(key: str, modules: frozenset[str]) -> bool:
    """Say whether `key` is of one of `modules`, spelled as PEFT does."""
    if not key.startswith(PEFT_PREFIX):
        return False
    parts = key.removeprefix(PEFT_PREFIX).split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts)))
