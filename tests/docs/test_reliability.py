"""The page on reliability names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text("utf-8")
ROWS = [line for line in PAGE.splitlines() if line.startswith("|")]


def named() -> set[tuple[str, str]]:
    """Return files and functions: a function is in the file that its row names last before it."""
    found = set()
    for row in ROWS:
        file = ""
        for word in re.findall(r"`([^`]+)`", row):
            file = word if word.endswith(".py") else file
            if word.startswith("test_"):
                found.add((file, word))
    return found


def test_every_test_that_is_named_is_there() -> None:
    pairs = named()
    assert len(pairs) > 50
    missing = [each for each in pairs if f"def {each[1]}(" not in (ROOT / each[0]).read_text("utf-8")]
    assert missing == []


def test_every_file_of_tests_that_is_named_is_there() -> None:
    names = {word for row in ROWS for word in re.findall(r"`((?:tests|plugins|benchmarks)/[^`]+)`", row)}
    assert [name for name in names if not list(ROOT.glob(name))] == []
