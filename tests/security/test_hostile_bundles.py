"""Whatever a stranger writes into the fields of a bundle, it works or is refused as the bundle's fault."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import lora_core
from lora_core.hub import PluginHub
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.security.hostile_bundles import actions, attempt, changes

TRIALS = 30


@pytest.fixture(scope="module")
def hub() -> PluginHub:
    return PluginHub()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, hub: PluginHub) -> Path:
    root = tmp_path_factory.mktemp("valid")
    write_tiny_checkpoint(root / "model")
    write_tiny_adapter(root / "adapter", seed=1)
    options = {"context_len": 32, "input_len": 8}
    lora_core.export(
        root / "model",
        adapters={"alice": root / "adapter"},
        backend="qnn_sim",
        options=options,
        out=root / "b",
        hub=hub,
    )
    return root / "b"


@pytest.mark.parametrize("action", ["inspect", "add", "remove", "open"])
def test_changed_fields_are_never_called_a_defect(bundle: Path, hub: PluginHub, action: str) -> None:
    act = actions(hub, bundle.parent / "adapter")[action]
    chosen = random.Random(f"fields of {action}").sample(list(changes(bundle)), TRIALS)
    trials = [attempt(bundle, change, action, act) for change in chosen]
    assert [str(trial) for trial in trials if trial.wrong] == []
    assert {trial.outcome for trial in trials} == {"done", "refused"}
