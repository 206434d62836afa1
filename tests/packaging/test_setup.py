"""`make setup` says what it does; what the installer says goes to a log."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import lora_core
from tests.packaging.make import make

# Stands for `python3`, and for the `python` of the environment that it is asked to make.
PYTHON = """#!/bin/sh
case "$*" in
    -c*) ;;
    "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *--editable*) echo "WARNING: Location ignored"; {editable} ;;
    *) echo "WARNING: Location ignored" ;;
esac
"""


def setup(directory: Path, editable: str) -> subprocess.CompletedProcess[str]:
    """Run `make setup` with an installer of our own, whose installation of the distributions does `editable`."""
    python = directory / "python3"
    python.write_text(PYTHON.format(editable=editable), "utf-8")
    python.chmod(0o755)
    places = [f"PYTHON={python}", f"VENV={directory / 'venv'}", f"SETUP_LOG={directory / 'log/setup.log'}"]
    return make("setup", *places)


@pytest.mark.parametrize("level", ["0", "1"])
def test_it_prints_its_steps_and_not_the_installers_warnings(
    level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAKELEVEL", level)  # as when the tests are called from a shell, and from `make test`
    ran = setup(tmp_path, editable="echo Successfully installed")
    assert ran.returncode == 0, ran
    assert [line[:4] for line in ran.stdout.splitlines()] == ["==> "] * 3
    assert ran.stderr == ""
    assert "WARNING: Location ignored" in (tmp_path / "log/setup.log").read_text("utf-8")
    assert (tmp_path / f"venv/.installed-{lora_core.__version__}").exists()


def test_a_failure_shows_its_reason_and_the_log(tmp_path: Path) -> None:
    ran = setup(tmp_path, editable='echo "ERROR: No matching distribution" >&2; exit 1')
    assert ran.returncode != 0
    assert "ERROR: No matching distribution" in ran.stdout
    assert str(tmp_path / "log/setup.log") in ran.stdout
    assert "WARNING" not in ran.stdout + ran.stderr
    assert list(tmp_path.glob("venv/.installed*")) == []
