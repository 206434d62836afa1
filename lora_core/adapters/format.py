"""The interface of adapter formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from lora_core.adapters.adapter import Adapter
from lora_core.models.base import ModelSummary


class AdapterFormat(ABC):
    """A way adapters are stored on disk; the PEFT directory comes with the core."""

    @abstractmethod
    def sniff(self, path: Path) -> bool:
        """Say whether `path` looks like this format; never raises."""

    @abstractmethod
    def read(self, name: str, path: Path, base: ModelSummary, *, strength: float = 1.0) -> Adapter:
        """Read the adapter at `path` for `base`; raises `AdapterError` with every problem found."""

    @abstractmethod
    def read_files(
        self, name: str, weights: Path, config: Path, base: ModelSummary, *, strength: float = 1.0
    ) -> Adapter:
        """Read an adapter given as its weights file and its configuration file."""
