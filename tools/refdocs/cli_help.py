"""What `--help` of every command prints."""

from __future__ import annotations

import contextlib
import io

from lora_core.cli.group import CommandGroup
from refdocs.markdown import page
from refdocs.projects import hub

WIDTH = 100


def cli_help() -> str:
    """Return the page of the command line's help."""
    parts = ["What each command says of itself; [the command line](cli.md) explains.", _fenced()]
    for name in hub().commands:
        parts += [f"## {name}", _fenced(name)]
    return page("Help of every command", *parts)


def _fenced(*words: str) -> str:
    text = _printed(*words).replace(" -)", ")")
    return f"```\n$ lora-core {' '.join((*words, '--help'))}\n{text.strip()}\n```"


def _printed(*words: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        CommandGroup(hub()).main(
            [*words, "--help"], prog_name="lora-core", standalone_mode=False, obj=hub(), terminal_width=WIDTH
        )
    return out.getvalue()
