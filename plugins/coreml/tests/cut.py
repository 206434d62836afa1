"""SmolLM2 with real weights, cut to its first layers, and the real adapters cut with it."""

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file


def cut_model(source: Path, target: Path, layers: int) -> Path:
    """Write the first `layers` layers of the checkpoint at `source`."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja", ".txt") and path.name != "config.json":
            shutil.copy(path, target / path.name)
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] = layers
    (target / "config.json").write_text(json.dumps(config))
    tensors = {}
    for path in source.glob("*.safetensors"):
        with safe_open(path, "np") as stored:
            tensors |= {name: stored.get_tensor(name) for name in stored.keys() if _kept(name, layers)}  # noqa: SIM118
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


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
