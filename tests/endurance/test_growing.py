"""A bundle grows to as many adapters as anybody has, and shrinks again to what it was.

`ENDURANCE=10000 pytest tests/endurance` (or `make endurance`) adds as many; `-s` prints time and memory as it grows.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import lora_core
from lora_core.bundle.bundle import Bundle
from tests.endurance.test_random_changes import contents

ADAPTERS = int(os.environ.get("ENDURANCE", "40"))
SOURCES = 20


def test_a_bundle_grows_to_many_adapters_and_shrinks_to_what_it_was(
    export: Callable[..., Bundle], make_adapter: Callable[..., Path], hub
) -> None:
    sources = [make_adapter(f"s{index}", seed=index) for index in range(SOURCES)]
    path = export("bundle", max_rank=2, targets=("q_proj", "v_proj")).path
    empty, names = contents(path), [f"a{number}" for number in range(ADAPTERS)]
    for start in range(0, ADAPTERS, ADAPTERS // 10):
        batch = names[start : start + ADAPTERS // 10]
        begun = time.process_time()
        lora_core.add(path, {name: sources[int(name[1:]) % SOURCES] for name in batch}, hub=hub)
        added = (time.process_time() - begun) / len(batch)
        begun = time.process_time()
        lora_core.add(path, {"one": sources[0]}, hub=hub)
        lora_core.remove(path, ["one"], hub=hub)
        alone, memory = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{start + len(batch)}: {added:.4f} s each, {alone:.3f} s for one more and back, {memory} KiB")
    begun = time.process_time()
    report = lora_core.inspect(path, hub=hub)
    print(f"inspected in {time.process_time() - begun:.1f} s")
    assert report.passed, report.problems[:5]
    assert sorted(entry.name for entry in report.bundle.manifest.adapters) == sorted(names)
    lora_core.remove(path, names, hub=hub)
    assert contents(path) == empty
