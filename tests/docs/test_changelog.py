"""Changelog fragments have the form that a release needs."""

from __future__ import annotations

import changelog
import pytest

TEXT = "# Changelog\n\n## 0.2.0 (unreleased)\n\n- One.\n\n## 0.1.0\n\n- Old.\n"


@pytest.mark.parametrize("path", changelog.fragments(), ids=lambda path: path.name)
def test_a_fragment_is_well_formed(path: object) -> None:
    assert changelog.problem(path.name, path.read_text("utf-8")) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("thing.new.md", "It is."),
        ("Thing.added.md", "It is."),
        ("thing.added.md", "- It is."),
        ("thing.added.md", "It"),
    ],
)
def test_a_malformed_fragment_is_told(name: str, text: str) -> None:
    assert changelog.problem(name, text) is not None


def test_fragments_become_the_last_entries_of_the_first_heading() -> None:
    assert changelog.joined(TEXT, ["Two\nlines.\n"]) == TEXT.replace("- One.\n", "- One.\n- Two lines.\n")
