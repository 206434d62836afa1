"""A fleet's directory that a stranger prepared: nothing outside of it is written, read or deleted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import lora_core
from lora_core.errors import LoraCoreError
from lora_core.fleet.index import FORMAT, FleetIndex

ENTRY = {
    "place": "a",
    "name": "a",
    "key": "0" * 64,
    "work": "0" * 64,
    "signature": None,
    "adapter": "0" * 64,
    "package": "a.lora",
    "size": 1,
    "digest": "0" * 64,
}


@pytest.fixture
def fleet(fake, make_adapter, export, hub, tmp_path: Path):
    """Return a run of `pack_all` over two adapters; its directory is `fleet`."""
    for name in ("a", "b"):
        make_adapter(name)
    bundle = export("bundle", max_rank=4, targets=["q_proj", "v_proj"])

    def run():
        return lora_core.pack_all(tmp_path / "adapters", bundle, out=tmp_path / "fleet", hub=hub, processes=1)

    return run


def index(path: Path, *entries: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, ({"format": FORMAT, "version": 1}, *entries))) + "\n")
    return path


@pytest.mark.parametrize("name", ["report.json", "index.jsonl", "packages"])
def test_links_in_the_place_of_a_fleets_files_are_not_followed(fleet, tmp_path: Path, name: str) -> None:
    index(tmp_path / "fleet/index.jsonl")
    mine = tmp_path / "mine"
    if name == "packages":
        mine.mkdir()
        (mine / ".a.lora.0123abcd").write_text("mine")
    else:
        mine.write_text("mine")
    (tmp_path / "fleet" / name).unlink(missing_ok=True)
    (tmp_path / "fleet" / name).symlink_to(mine)
    with pytest.raises(LoraCoreError, match="is not what a fleet has there"):
        fleet()
    assert [path.read_text() for path in (mine.iterdir() if mine.is_dir() else [mine])] == ["mine"]


@pytest.mark.parametrize(
    "change",
    [
        {"package": "../../mine"},
        {"package": ".."},
        {"package": "a\0b"},
        {"package": 5},
        {"package": "other.lora"},
        {"name": "../a", "package": "../a.lora"},
        {"name": ["a"]},
        {"place": ["a"]},
        {"size": "1"},
        {"signature": {}},
        {"more": 1},
    ],
    ids=str,
)
def test_lines_that_a_fleet_did_not_write_are_no_entries(tmp_path: Path, change: dict[str, Any]) -> None:
    path = index(tmp_path / "fleet/index.jsonl", ENTRY, {**ENTRY, "place": "b", **change})
    assert list(FleetIndex.read(path).entries) == ["a"]


def test_names_that_are_no_text_are_packed_and_told(fleet, tmp_path: Path) -> None:
    (tmp_path / "adapters/b").rename(os.fsdecode(os.fsencode(tmp_path) + b"/adapters/b\xff"))
    assert fleet().packed == 2
    assert fleet().packed == 1  # the other is known again
    assert json.loads((tmp_path / "fleet/report.json").read_text())["packed"] == 1
