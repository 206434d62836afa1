"""`lora-core verify` as a user runs it."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.cli.shell import Shell
from tests.verification.breaking import flip_bit


@pytest.fixture
def shell(float32, tmp_path) -> Shell:
    directory = tmp_path / "work"
    shutil.copytree(float32.path, directory / "bundle")
    return Shell(directory=directory)


def test_it_prints_numbers_and_keeps_a_report_that_the_page_shows(shell, sources):
    given = [f"--adapter={name}={path}" for name, path in sources.adapters.items()]
    done = shell.run("verify", "bundle", "--model", sources.model, *given, "--tokens", "4", "--report", "verify.json")
    assert done.code == 0, done
    for expected in ("max error", "KL", "top-1", "greedy", "cosine", "kv-cache", "transformers", "passed"):
        assert expected in done.out
    assert json.loads((shell.directory / "verify.json").read_text())["passed"] is True
    shown = shell.run("inspect", "bundle", "--html", "page.html", "--report", "verify.json")
    assert shown.code == 0, shown
    page = (shell.directory / "page.html").read_text()
    assert "not verified" not in page
    assert "nothing survives a reset" in page


def test_a_check_that_does_not_hold_is_exit_code_5(shell, sources):
    flip_bit(shell.directory / "bundle" / "foundation.ptd")
    done = shell.run("verify", "bundle", "--model", sources.model, "--json")
    assert done.code == 5, done
    report = json.loads(done.out)
    assert report["passed"] is False
    failed = {each["check"] for each in report["findings"] if each["outcome"] == "failed"}
    assert failed == {"hashes", "foundation"}


def test_reports_without_a_page_are_refused(shell):
    done = shell.run("inspect", "bundle", "--report", "verify.json")
    done.expect_refusal(2, "--report adds numbers to a page", "Say --html PAGE too.")
