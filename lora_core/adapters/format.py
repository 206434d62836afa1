"""The interface of adapter formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from pathlib import Path

from lora_core.adapters.adapter import Adapter
from lora_core.layers import ModelSummary


class Claim(IntEnum):
    """How sure a format is that a directory is its own. The surest format reads it; of equals, a plugin's."""

    NO = 0
    POSSIBLE = 1
    """There is a file that other formats have too."""
    CERTAIN = 2
    """What is there is of this format alone."""


class AdapterFormat(ABC):
    """A way adapters are stored on disk; the PEFT directory comes with the core."""

    @abstractmethod
    def sniff(self, path: Path) -> Claim:
        """Say whether directory `path` is of this format; never raises."""

    def sniff_files(self, weights: Path, config: Path) -> Claim:  # noqa: ARG002 - for others
        """Say whether an adapter given as two files is of this format; never raises."""
        return self.sniff(weights.parent)

    @abstractmethod
    def read(self, name: str, path: Path, base: ModelSummary, *, strength: float = 1.0) -> Adapter:
        """Read the adapter at `path` for `base`; raises `AdapterError` with every problem found."""

    @abstractmethod
    def read_files(
        self, name: str, weights: Path, config: Path, base: ModelSummary, *, strength: float = 1.0
    ) -> Adapter:
        """Read an adapter given as its weights file and its configuration file."""
