"""Temporary directories go also if an interruption comes while they are removed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest

from lora_core.temporary import temporary_directory


def test_a_temporary_directory_is_private_and_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_directory("work") as directory:
        (directory / "file").write_text("x")
        assert directory.stat().st_mode & 0o077 == 0
        assert directory.name.startswith("lora-core-work-")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_of_its_removal_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole, calls = shutil.rmtree, []

    def interrupted(*words: object, **options: object) -> None:
        calls.append(words)
        if len(calls) == 1:
            raise KeyboardInterrupt
        whole(*words, **options)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), temporary_directory() as directory:
        (directory / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_still_writes_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole, calls = shutil.rmtree, []

    def beside_a_writer(path: Path, **options: bool) -> None:
        calls.append(path)
        if len(calls) > 1:
            whole(path, **options)

    monkeypatch.setattr(shutil, "rmtree", beside_a_writer)  # the first comes too early
    with temporary_directory() as directory:
        (directory / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []
