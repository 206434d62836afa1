"""Fixtures for the tests of the core and of every plugin: the real model, and a few layers of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
SMOLLM2 = ROOT / "build/models/SmolLM2-135M-Instruct"


@pytest.fixture(scope="session")
def examples() -> Path:
    """Return the directory of the real adapters: `pirate`, `shout` and `json`."""
    return ROOT / "examples/adapters"


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """Return SmolLM2-135M-Instruct as a Hugging Face directory; `make model` makes it."""
    assert (SMOLLM2 / "config.json").exists(), f"{SMOLLM2} is missing: run 'make model'"
    return SMOLLM2


@pytest.fixture(scope="session")
def smollm2_cut(smollm2_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that gives SmolLM2 cut to its first layers, with its real weights and tokenizer."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    def cut(layers: int) -> Path:
        directory = tmp_path_factory.mktemp("smollm2") / f"{layers}-layers"
        directory.mkdir()
        for path in smollm2_dir.iterdir():
            if path.suffix != ".safetensors":
                (directory / path.name).write_bytes(path.read_bytes())
        with safe_open(smollm2_dir / "model.safetensors", framework="numpy") as file:
            kept = [name for name in file.keys() if _layer(name) < layers]  # noqa: SIM118 - a file, not a dict
            save_file({name: file.get_tensor(name) for name in kept}, directory / "model.safetensors")
        config = json.loads((smollm2_dir / "config.json").read_text("utf-8"))
        (directory / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}), "utf-8")
        return directory

    return cut


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[2]) if parts[1] == "layers" else -1
