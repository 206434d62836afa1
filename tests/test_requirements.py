"""What `make setup` installs is held against hashes, but for what no hash fits on every index."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

REQUIREMENTS = Path(__file__).parents[1] / "requirements"
UNHASHED = {"torch"}
"""Indexes have builds for CPUs, or for GPUs, under one version."""


def pins(file: str) -> dict[str, str]:
    """Return what a file and those it includes pin, by normalized name."""
    text = (REQUIREMENTS / file).read_text("utf-8")
    found = dict(re.findall(r"^([\w.-]+)==([\w.+!-]+)", text, re.MULTILINE))
    for other in re.findall(r"^--requirement (\S+)", text, re.MULTILINE):
        found |= pins(other)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found.items()}


def test_everything_pinned_has_hashes_in_its_version() -> None:
    hashed = pins("hashes.txt")
    assert {name: hashed.get(name) for name in pins("dev.txt") if name not in UNHASHED} == {
        name: version for name, version in pins("dev.txt").items() if name not in UNHASHED
    }
    assert not set(hashed) & UNHASHED


def test_each_of_them_is_a_version_with_hashes_and_nothing_else() -> None:
    text = re.sub(r"^#.*\n", "", (REQUIREMENTS / "hashes.txt").read_text("utf-8"), flags=re.MULTILINE)
    entry = r"[\w.-]+==[\w.+!-]+(?: ; [^\n\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    assert re.fullmatch(f"(?:{entry})+", text)


@pytest.mark.parametrize("name", ["numpy", "executorch", "transformers", "attrs", "click"])
def test_the_tests_run_with_those_versions(name: str) -> None:
    assert metadata.version(name) == pins("hashes.txt")[name]
