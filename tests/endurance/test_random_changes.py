"""A bundle after any number of adds and removes, in any order, is what a model of it in memory says.

`ENDURANCE=10000 pytest tests/endurance` (or `make endurance`) does as many; `-s` prints time and memory as they go.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import lora_core
from lora_core.bundle.bundle import Bundle

CHANGES = int(os.environ.get("ENDURANCE", "40"))
ADAPTERS = 12


@pytest.mark.parametrize("layout", ["split", "joint"])
def test_random_adds_and_removes_end_where_a_model_in_memory_does(
    layout: str, export: Callable[..., Bundle], make_adapter: Callable[..., Path], hub
) -> None:
    sources = {f"a{index}": make_adapter(f"a{index}", seed=index) for index in range(ADAPTERS)}
    path = export("bundle", options={"layout": layout}, max_rank=2, targets=("q_proj", "v_proj")).path
    empty = contents(path)
    chance, there = random.Random(f"endurance {layout}"), set[str]()
    started, slowest = time.process_time(), 0.0
    for number in range(1, CHANGES + 1):
        some = set(chance.sample(sorted(sources), chance.randint(1, 3)))
        before = time.process_time()
        if some & there and (some <= there or chance.random() < 0.5):
            lora_core.remove(path, sorted(some & there), hub=hub)
            there -= some
        elif new := some - there:
            lora_core.add(path, {name: sources[name] for name in sorted(new)}, hub=hub)
            there |= new
        slowest = max(slowest, time.process_time() - before)
        manifest = json.loads((path / "manifest.json").read_bytes())
        assert {adapter["name"] for adapter in manifest["adapters"]} == there
        if number % max(1, CHANGES // 10) == 0:
            report = lora_core.inspect(path, hub=hub)
            assert report.passed, report.problems
            seconds, memory = time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"{layout}: {number} changes, {seconds / number:.4f} s each, slowest {slowest:.3f} s, {memory} KiB")
    if there:
        lora_core.remove(path, sorted(there), hub=hub)
    assert contents(path) == empty, "removing all leaves the bytes of the beginning"


def contents(path: Path) -> dict[str, str]:
    """Return the hash of every file of the bundle itself."""
    files = [each for each in sorted(path.rglob("*")) if each.is_file() and ".lora-core" not in each.parts]
    return {str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest() for each in files}
