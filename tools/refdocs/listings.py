"""Files of the repository shown in hand-written pages.

A listing is a code block under a comment that names the file. It holds the whole file, so that a reader who copies the
blocks of a tutorial has the example, and the example's tests are the tutorial's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from refdocs.projects import ROOT

LISTING = re.compile(
    r"^<!-- file: (?P<path>\S+) -->\n```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


def pages() -> Iterator[Path]:
    """Yield the pages that have listings."""
    for path in sorted((ROOT / "docs").rglob("*.md")):
        if LISTING.search(path.read_text("utf-8")):
            yield path


def listed(page: Path) -> dict[str, str]:
    """Return the files that `page` shows, by their paths."""
    return {each["path"]: each["text"] for each in LISTING.finditer(page.read_text("utf-8"))}


def filled(page: Path) -> str:
    """Return the text of `page` with its listings as the files are now."""

    def fill(match: re.Match[str]) -> str:
        text = (ROOT / match["path"]).read_text("utf-8")
        return f"<!-- file: {match['path']} -->\n```{match['language']}\n{text}```"

    return LISTING.sub(fill, page.read_text("utf-8"))
