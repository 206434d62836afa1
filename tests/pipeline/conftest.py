"""A hub with the fake backend, and PEFT directories of random adapters."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import lora_core
from lora_core.bundle.bundle import Bundle
from lora_core.hub import PluginHub


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import fake_backend

    return fake_backend


@pytest.fixture
def hub(fake: ModuleType) -> PluginHub:
    hub = PluginHub([EntryPoint(name="fake", value="fake_backend", group="lora_core")])
    assert hub.faults == ()
    return hub


@pytest.fixture
def make_adapter(tmp_path: Path) -> Callable[..., Path]:
    """Write a PEFT directory of random matrices; the same arguments give the same bytes."""

    def make(
        name: str,
        *,
        rank: int = 2,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        base: str = "fake/base",
        seed: int = 0,
    ) -> Path:
        from fake_backend import MODULES, WIDTH

        directory = tmp_path / "adapters" / name
        directory.mkdir(parents=True)
        chance = np.random.default_rng([seed, *name.encode()])
        tensors = {}
        for module in MODULES:
            if module.rpartition(".")[2] in targets:
                for side, shape in (("A", (rank, WIDTH)), ("B", (WIDTH, rank))):
                    key = f"base_model.model.{module}.lora_{side}.weight"
                    tensors[key] = chance.standard_normal(shape).astype(np.float32)
        save_file(tensors, directory / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": list(targets),
            "base_model_name_or_path": base,
        }
        (directory / "adapter_config.json").write_text(json.dumps(config))
        return directory

    return make


@pytest.fixture
def export(hub: PluginHub, fake: ModuleType, tmp_path: Path) -> Callable[..., Bundle]:
    """Export the fake model with the adapters given to `tmp_path / NAME`."""

    def run(name: str, adapters: Any = (), **more: Any) -> Bundle:
        arguments = {"backend": "fake", "model": fake.FakeModel(), "out": tmp_path / name, **more}
        return lora_core.export(arguments.pop("model"), adapters=adapters, hub=hub, **arguments)

    return run


@pytest.fixture
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Return a function that reads every file below a directory."""

    def read(directory: Path) -> dict[str, bytes]:
        return {
            path.relative_to(directory).as_posix(): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return read
