"""Markdown as the generated pages use it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

COMMAND = "make reference"
NOTICE = f"<!-- Made by `{COMMAND}` from the code: do not edit. -->"


def page(title: str, *parts: str) -> str:
    """Return a page: its title, the notice that it is made, and `parts` with a blank line between."""
    return "\n\n".join([f"# {title}", NOTICE, *(part.strip("\n") for part in parts if part.strip())]) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def code(text: str) -> str:
    """Return `text` as code in a line; nothing for nothing."""
    return f"`{text}`" if text else ""


def doc(thing: object) -> str:
    """Return the docstring of `thing`, which is Markdown already."""
    return inspect.cleandoc(getattr(thing, "__doc__", None) or "")


def first_line(text: str) -> str:
    """Return the first sentence or line of a docstring, for tables."""
    return " ".join(text.partition("\n\n")[0].split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
