"""Adapters as MLX-LM saves them: `adapter_config.json` beside `adapters.safetensors`.

Format: mlx_lm/tuner/lora.py and `load_adapters` of mlx_lm/tuner/utils.py (https://github.com/ml-explore/mlx-lm). Every
format is asked whose an adapter is, and one reads it: what that takes is in `reading.py`.
"""

from __future__ import annotations

from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.format import AdapterFormat, Claim
from lora_core.adapters.mlx_lm.names import CONFIG, OLD_WEIGHTS, WEIGHTS
from lora_core.errors import AdapterError
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.layers import ModelSummary

_FIELDS = (b'"lora_parameters"', b'"fine_tune_type"')


class MlxLmFormat(AdapterFormat):
    """A LoRA adapter of MLX-LM. Every tensor is used or named."""

    def sniff(self, path: Path) -> Claim:
        """Claim a directory whose weights are named as MLX-LM names them; its configuration is named as PEFT's is."""
        try:
            if not any((path / name).is_file() for name in (WEIGHTS, OLD_WEIGHTS)):
                return Claim.NO
            return Claim.CERTAIN if (path / CONFIG).is_file() else Claim.POSSIBLE
        except OSError:
            return Claim.NO

    def sniff_files(self, weights: Path, config: Path) -> Claim:  # noqa: ARG002 - the configuration says it
        """Claim a file whose configuration has fields of MLX-LM."""
        try:
            data = read_regular(config, limits.CONFIG, AdapterError)
        except (OSError, AdapterError):
            return Claim.NO
        return Claim.CERTAIN if any(field in data for field in _FIELDS) and b'"peft_type"' not in data else Claim.NO

    def read(self, name: str, path: Path, base: ModelSummary, *, strength: float = 1.0) -> Adapter:
        """Read the adapter in directory `path` for `base`; raises `AdapterError` with every problem found."""
        adapter = self.read_files(name, path / WEIGHTS, path / CONFIG, base, strength=strength)
        return attrs.evolve(adapter, source=str(path))

    def read_files(
        self, name: str, weights: Path, config: Path, base: ModelSummary, *, strength: float = 1.0
    ) -> Adapter:
        """Read an adapter given as its weights file and its configuration file; raises as `read`."""
        from lora_core.adapters.mlx_lm.reading import read

        try:
            return read(name, weights, config, base).scaled(strength)
        except AdapterError as error:
            raise AdapterError(
                attrs.evolve(each, what=f"Adapter {name!r}: {each.what}") for each in error.problems
            ) from error

    def implied_base(self, path: Path) -> ModelSummary:
        """Return the layers that the adapter in `path` updates."""
        from lora_core.adapters.mlx_lm.reading import implied_base

        return implied_base(path)
