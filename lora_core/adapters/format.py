"""The interface of adapter formats."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path

from lora_core.adapters.adapter import Adapter
from lora_core.errors import UnsupportedError
from lora_core.layers import ModelSummary
from lora_core.tensors import LazyTensor


class Claim(IntEnum):
    """How sure a format is that a directory is its own. The surest format reads it; of equals, a plugin's."""

    NO = 0
    POSSIBLE = 1
    """There is a file that other formats have too."""
    CERTAIN = 2
    """What is there is of this format alone."""


class AdapterFormat(ABC):
    """A way adapters are stored on disk; those of PEFT, MLX-LM and llama.cpp (GGUF) come with the core."""

    @abstractmethod
    def sniff(self, path: Path) -> Claim:
        """Say whether `path`, a directory or a file, is of this format; never raises."""

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

    def with_weights(self, weights: Callable[[], Mapping[str, LazyTensor]]) -> AdapterFormat:  # noqa: ARG002 - for others
        """Return a format that may use the base's tensors, which `weights` gives by name; one that needs none returns
        itself.
        """
        return self

    def implied_base(self, path: Path) -> ModelSummary:
        """Return a base as far as the adapter at `path` itself tells it: the layers that it updates, named and sized.

        It is what `lora-core convert` reads an adapter for when no base is given. Raises `UnsupportedError` if the
        files do not tell.
        """
        raise UnsupportedError(
            "The files do not tell which layers of a base they are for", where=str(path), remedy="Say it: --model DIR."
        )
