"""Let a plugin depend on lora-core in its own version: both are released together. Each plugin has this same file."""

from __future__ import annotations

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class LoraCoreOfSameVersion(MetadataHookInterface):
    """Put `lora-core==VERSION` before the dependencies that pyproject.toml lists for this hook."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Fill in `dependencies`; the version is known by now."""
        metadata["dependencies"] = [f"lora-core=={metadata['version']}", *self.config["dependencies"]]
