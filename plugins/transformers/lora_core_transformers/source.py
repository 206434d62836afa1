"""Checkpoint directories and hub ids as base models that transformers defines."""

from __future__ import annotations

from pathlib import Path

from lora_core.errors import ModelError
from lora_core.models import hub_cache
from lora_core.models.base import ModelSource
from lora_core.models.config_file import CONFIG_FILE
from lora_core_transformers.checkpoint import open_checkpoint
from lora_core_transformers.model import TransformersModel


class TransformersSource(ModelSource):
    """Directories that `save_pretrained` wrote (config.json and safetensors), and hub ids in the local cache."""

    def sniff(self, ref: str) -> bool:
        """Say whether `ref` is a directory with a config.json, or no path and spelled like a hub id."""
        path = Path(ref)
        try:
            return (path / CONFIG_FILE).is_file() or (not path.exists() and hub_cache.is_hub_id(ref))
        except (OSError, ValueError):
            return False

    def open(self, ref: str, *, download: bool = False) -> TransformersModel:
        """Open a directory or hub id: configuration and structure, no weights. Raises `ModelError`."""
        path = Path(ref)
        if path.exists() or not hub_cache.is_hub_id(ref):
            if not path.is_dir():
                raise ModelError(f"There is no model directory {ref!r}.", remedy="Give one with a config.json.")
            hub_id = hub_cache.id_of_snapshot(path.absolute())
            return TransformersModel(checkpoint=open_checkpoint(path, (hub_id,) if hub_id else ()))
        return TransformersModel(checkpoint=open_checkpoint(hub_cache.resolve(ref, download=download), (ref,)))
