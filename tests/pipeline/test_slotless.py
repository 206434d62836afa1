"""Backends that store adapters as they are: no room to reserve, and any adapter fits at any time."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lora_core
from lora_core.errors import UsageError
from lora_core.events import Event, Noted
from lora_core.hub import PluginHub
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.hub.distributions import entry_points_of, install_example


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PluginHub]:
    """The example plugin, whose descriptor says `slot_plans=False`."""
    site = install_example(tmp_path_factory.mktemp("slotless") / "site")
    sys.path.insert(0, str(site))
    yield PluginHub(entry_points_of(site))
    sys.path.remove(str(site))
    for name in [name for name in sys.modules if name.startswith("lora_core_plain")]:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "model")


def test_adapters_are_added_to_a_bundle_that_never_had_any(hub: PluginHub, model: Path, tmp_path: Path) -> None:
    bundle = lora_core.export(model, backend="plain", out=tmp_path / "out", hub=hub)
    wide = write_tiny_adapter(tmp_path / "wide", seed=1, rank=40, targets=("gate_proj",))
    added = lora_core.add(bundle, {"wide": wide}, hub=hub)
    assert [(each.name, each.rank) for each in added.manifest.adapters] == [("wide", 40)]
    assert added.manifest.plans == ()


def test_nothing_is_said_of_padding(hub: PluginHub, model: Path, tmp_path: Path) -> None:
    adapters = {f"r{rank}": write_tiny_adapter(tmp_path / f"r{rank}", seed=rank, rank=rank) for rank in (2, 9)}
    told: list[Event] = []
    lora_core.export(model, adapters=adapters, backend="plain", out=tmp_path / "out", hub=hub, emit=told.append)
    notes = [event.message for event in told if isinstance(event, Noted)]
    assert [note for note in notes if "tokenizer.json" not in note] == []


def test_room_cannot_be_reserved(hub: PluginHub, model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no room to reserve\. Leave --max-rank and --targets out"):
        lora_core.export(model, backend="plain", out=tmp_path / "out", hub=hub, max_rank=8, targets="all-linear")
