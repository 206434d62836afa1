"""Measuring the memory of this process."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lora_core.runtime import memory

ROLLUP = """55d1c0e4e000-7ffd6a5f2000 ---p 00000000 00:00 0                          [rollup]
Rss:                1000 kB
Pss:                 900 kB
Anonymous:           600 kB
Swap:                  0 kB
"""
SIZE = 32 * 2**20


def test_the_systems_figures_are_in_kilobytes_of_1024():
    told = memory.parse_smaps_rollup(ROLLUP)
    assert told == memory.Memory(resident=1024000, anonymous=614400, file_backed=409600, proportional=921600)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous from file-backed memory")
@pytest.mark.parametrize("look", [memory.measure, memory.count])
def test_allocated_memory_is_anonymous_and_mapped_files_are_file_backed(
    tmp_path: Path, look: Callable[[], memory.Memory]
):
    file = tmp_path / "data"
    file.write_bytes(b"\1" * SIZE)
    before = look()
    # A mapping of its own: an allocator may serve the request from memory that the process already has.
    held = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.write(b"\1" * SIZE)
    allocated = look()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) == SIZE // mmap.PAGESIZE
        read = look()
    assert len(held) == SIZE
    # A quarter of the size is room for what the interpreter does beside it.
    assert allocated.anonymous - before.anonymous == pytest.approx(SIZE, rel=0.25)
    assert read.file_backed - allocated.file_backed == pytest.approx(SIZE, rel=0.25)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous from file-backed memory")
def test_a_file_mapped_twice_is_resident_twice_and_proportional_once(tmp_path: Path):
    file = tmp_path / "data"
    file.write_bytes(b"\1" * SIZE)
    before = memory.measure()
    mappings = []
    for _ in range(2):
        with file.open("rb") as opened:
            mappings.append(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
        assert sum(mappings[-1][:: mmap.PAGESIZE]) == SIZE // mmap.PAGESIZE
    after = memory.measure()
    for mapping in mappings:
        mapping.close()
    assert after.resident - before.resident == pytest.approx(2 * SIZE, rel=0.25)
    assert after.proportional - before.proportional == pytest.approx(SIZE, rel=0.25)


def test_a_system_that_tells_no_details_gives_a_total(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(memory, "SMAPS_ROLLUP", tmp_path / "nowhere")
    told = memory.measure()
    assert not told.detailed
    assert told.anonymous == told.proportional == told.resident > 2**20
    assert told.file_backed == 0
