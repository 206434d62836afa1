"""The real adapters, cut to the first layers of their base."""

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file


def cut_adapter(source: Path, target: Path, layers: int) -> Path:
    """Write the part of the adapter at `source` that fits a model cut to `layers` layers."""
    target.mkdir(parents=True)
    shutil.copy(source / "adapter_config.json", target / "adapter_config.json")
    with safe_open(source / "adapter_model.safetensors", "np") as stored:
        names = [name for name in stored.keys() if _kept(name, layers)]  # noqa: SIM118
        save_file({name: stored.get_tensor(name) for name in names}, target / "adapter_model.safetensors")
    return target


def _kept(name: str, layers: int) -> bool:
    if "layers." not in name:
        return True
    return int(name.split("layers.")[1].split(".")[0]) < layers
