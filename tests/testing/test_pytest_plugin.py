"""The kit as a pytest plugin, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub.distributions import install_example


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory beside the installed example."""
    root = tmp_path_factory.mktemp("plugin")
    install_example(root / "site")
    (root / "work").mkdir()
    return root / "work"


def run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    paths = [str(directory.parent / "site"), *filter(None, sys.path)]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "lora_core.testing.pytest_plugin",
        "-p",
        "no:cacheprovider",
        *words,
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


def test_each_check_is_an_item(directory: Path) -> None:
    done = run(directory, "--conform", "plain", "-k", "works-here or blobs-true", "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "conform::plain::works-here PASSED" in done.stdout
    assert "conform::plain::blobs-true PASSED" in done.stdout
    assert "2 passed" in done.stdout


def test_a_known_gap_that_passes_fails(directory: Path) -> None:
    done = run(directory, "--conform", "plain", "--conform-gap", "works-here=who knows", "-k", "works-here")
    assert done.returncode == 1
    assert "take it off" in done.stdout


def test_an_unknown_backend_is_an_error_of_usage(directory: Path) -> None:
    done = run(directory, "--conform", "plian")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "Did you mean 'plain'" in done.stderr


def test_without_the_option_nothing_is_added(directory: Path) -> None:
    (directory.parent / "other").mkdir()
    (directory.parent / "other" / "test_one.py").write_text("def test_one():\n    assert True\n", encoding="utf-8")
    done = run(directory.parent / "other", "-v")
    assert "1 passed" in done.stdout


def test_it_is_not_loaded_by_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert "--conform " not in done.stdout
