"""What is kept of lowered programs is whole, and what a killed run began does not stay for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from lora_core.template_cache import storage
from lora_core.template_cache.storage import read_kept, write_kept

DAYS = 24 * 3600


def killed(*_: object) -> None:
    raise SystemExit("killed")


def begun(cache: Path, monkeypatch: pytest.MonkeyPatch, *, ago: int) -> Path:
    """Leave what a run leaves that is killed while it writes, and that many seconds ago."""
    with monkeypatch.context() as patch:
        patch.setattr(storage.shutil, "rmtree", lambda *_, **__: None)
        patch.setattr(storage, "_digest", killed)
        with pytest.raises(SystemExit):
            write_kept(cache / "abc", {"a": b"x"}, {})
    (path,) = cache.iterdir()
    os.utime(path, (time.time() - ago,) * 2)
    return path


def test_what_a_killed_run_began_is_removed_by_the_next_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path, monkeypatch, ago=2 * DAYS)
    write_kept(tmp_path / "abc", {"a": b"x"}, {"b": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["abc"]
    assert read_kept(tmp_path / "abc") == {"b": 1}


def test_what_another_process_may_still_write_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = begun(tmp_path, monkeypatch, ago=60)
    write_kept(tmp_path / "abc", {"a": b"x"}, {})
    assert (other / "a").read_bytes() == b"x"
