"""A bundle is read while another process changes it: one file holds all, and is exchanged under the reader."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from lora_core.bundle.bundle import Bundle
from lora_core.bundle.manifest import dumps
from lora_core.bundle.paths import MANIFEST
from tests.endurance.readers import read_beside_a_writer

CHANGES = 8


def test_inspections_beside_a_writer_find_the_bundle_before_or_after_a_change(
    bundle: Bundle, exporter: Any, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    (path / MANIFEST).write_bytes(dumps(bundle.manifest))
    readings = read_beside_a_writer(path, "pirate", exporter.adapters["pirate"], CHANGES)
    assert readings.problems == []
    assert readings.adapters, "nothing was read beside it"
    assert set(readings.adapters) <= {frozenset({"shout", "pirate"}), frozenset({"shout"})}
