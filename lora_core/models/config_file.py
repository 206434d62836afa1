"""The file that says what a checkpoint is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora_core.errors import ModelError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import CONFIG
from lora_core.intake.plain_json import parse_json

CONFIG_FILE = "config.json"


def read_config(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`, a `config.json`; raises `ModelError` if it holds none."""
    try:
        config = parse_json(read_regular(path, CONFIG, ModelError))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path.name} cannot be read: {error}", where=str(path)) from error
    if not isinstance(config, dict):
        raise ModelError(f"{path.name} does not hold a JSON object", where=str(path))
    return config
