"""The file of packed weights: when it is trusted, made again, left alone, shared or removed. No runtime takes part."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from lora_core_xnnpack.runtime import packed_cache
from lora_core_xnnpack.runtime.packed_cache import PackedCache, packed_automatically, packed_name

FOUNDATION, SIZE = "f" * 64, 1000
MONTH = 30 * 24 * 3600


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that sessions use by themselves, where every foundation is large."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packed_cache, "_SMALL", 1)
    return packed_cache.default_directory()


@contextlib.contextmanager
def mapped(cache: PackedCache, content: bytes = b"packed weights") -> Iterator[None]:
    """Do what the runtime does for a program: write the file if there is none, and map it."""
    path = cache.path
    assert path is not None
    if not path.exists():
        path.write_bytes(content)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        cache.confirm()
        yield


def made(directory: Path, foundation: str = FOUNDATION) -> Path:
    cache = PackedCache(directory, foundation, SIZE)
    with mapped(cache):
        pass
    cache.close()
    (path,) = directory.glob(f"{packed_name(foundation)}.packed")
    return path


def state(directory: Path) -> str:
    cache = PackedCache(directory, FOUNDATION, SIZE)
    cache.close()
    return str(cache.state.state)


def automatic() -> str:
    cache, _ = packed_automatically(FOUNDATION, SIZE)
    assert cache is not None
    cache.close()
    return str(cache.state.state)


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list of the files that are hashed from now on."""
    seen: list[Path] = []
    digest = packed_cache._digest
    monkeypatch.setattr(packed_cache, "_digest", lambda path: seen.append(path) or digest(path))
    return seen


def test_a_file_that_nobody_touched_is_not_hashed_again(tmp_path, monkeypatch):
    made(tmp_path)
    seen = hashed(monkeypatch)
    assert (state(tmp_path), seen) == ("proven", [])


def test_a_copied_file_is_hashed_once(tmp_path, monkeypatch):
    made(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    seen = hashed(monkeypatch)
    assert (state(tmp_path / "two"), state(tmp_path / "two")) == ("proven", "proven")
    assert len(seen) == 1


def test_a_file_that_was_written_to_is_made_again(tmp_path):
    path = made(tmp_path)
    path.chmod(0o644)
    path.write_bytes(b"packed_weights")
    assert state(tmp_path) == "written"
    assert not path.exists()


def test_a_file_is_not_proven_while_another_session_of_the_process_maps_it(tmp_path):
    first = PackedCache(tmp_path, FOUNDATION, SIZE)
    with mapped(first):
        second = PackedCache(tmp_path, FOUNDATION, SIZE)
        assert second.path == first.path
        second.confirm()
        first.close()
        assert not list(tmp_path.glob("*.json"))
    second.close()
    assert state(tmp_path) == "proven"


def test_a_file_that_another_process_made_meanwhile_is_not_proven(tmp_path):
    first = PackedCache(tmp_path, FOUNDATION, SIZE)
    with mapped(first):
        path = first.path
        path.unlink()
        path.write_bytes(b"half a file")
    first.close()
    assert not list(tmp_path.glob("*.json"))


def test_nothing_is_written_where_the_disk_has_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_cache.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 2 * SIZE - 1))
    cache = PackedCache(tmp_path, FOUNDATION, SIZE)
    cache.close()
    assert str(cache.state) == "unused: the disk has no room for it"


def test_a_small_base_is_packed_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packed_automatically(FOUNDATION, SIZE) == (None, "the base is small")
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_told_and_no_error(caches):
    caches.parent.mkdir(parents=True)
    caches.write_text("a file, where the directory should be")
    cache, reason = packed_automatically(FOUNDATION, SIZE)
    assert cache is None
    assert reason.startswith("Packed weights cannot be kept")


@pytest.mark.parametrize(("age", "stays"), [(MONTH - 60, True), (MONTH + 60, False)])
def test_files_that_nobody_used_for_a_month_are_removed(caches, age, stays):
    other = made(caches, "e" * 64)
    proof = other.with_suffix(".json")
    then = proof.stat().st_mtime - age
    os.utime(proof, (then, then))
    automatic()
    assert (other.exists(), proof.exists()) == (stays, stays)


def test_use_makes_a_file_young_again(caches):
    proof = made(caches).with_suffix(".json")
    os.utime(proof, (0, 0))
    assert automatic() == "proven"
    assert proof.exists()


def test_packed_weights_of_another_foundation_have_another_name():
    assert packed_name("a" * 64) == packed_name("a" * 64) != packed_name("b" * 64)
