"""LoRA adapters in GGUF files, as llama.cpp's `convert_lora_to_gguf.py` writes and `llama-adapter.cpp` reads them.

Every format is asked whose an adapter is, and one reads it: what that takes is in `reading.py`.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.format import AdapterFormat, Claim
from lora_core.adapters.gguf.names import MAGIC
from lora_core.errors import AdapterError
from lora_core.layers import ModelSummary


class GgufFormat(AdapterFormat):
    """A LoRA adapter of llama.cpp: a `.gguf` file, or a directory that holds one."""

    def sniff(self, path: Path) -> Claim:
        """Claim a GGUF file, and a directory with a single one."""
        try:
            file = _file(path)
            if file is None:
                return Claim.NO
            with file.open("rb") as opened:
                return Claim.CERTAIN if opened.read(len(MAGIC)) == MAGIC else Claim.NO
        except OSError:
            return Claim.NO

    def sniff_files(self, weights: Path, config: Path) -> Claim:  # noqa: ARG002 - it has no configuration
        """Claim nothing: an adapter in GGUF is one file."""
        return Claim.NO

    def read(self, name: str, path: Path, base: ModelSummary, *, strength: float = 1.0) -> Adapter:
        """Read the adapter for `base`; raises `AdapterError` with every problem found."""
        from lora_core.adapters.gguf.reading import read

        file = _file(path)
        if file is None:
            what = f"Adapter {name!r}: There is no GGUF file"
            raise AdapterError(what, where=str(path), remedy="Give the file that ends in .gguf, or its directory.")
        try:
            return read(name, file, base).scaled(strength)
        except AdapterError as error:
            raise AdapterError(
                attrs.evolve(each, what=f"Adapter {name!r}: {each.what}") for each in error.problems
            ) from error

    def read_files(
        self, name: str, weights: Path, config: Path, base: ModelSummary, *, strength: float = 1.0
    ) -> Adapter:
        """Read the weights file; there is no configuration beside it."""
        del config
        return self.read(name, weights, base, strength=strength)

    def implied_base(self, path: Path) -> ModelSummary:
        """Return the layers that the adapter updates; raises `UnsupportedError` if its rows need the base's heads."""
        from lora_core.adapters.gguf.reading import implied_base

        return implied_base(_file(path) or path)


def _file(path: Path) -> Path | None:
    """Return the one GGUF file that `path` is or holds."""
    if path.is_file():
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None
