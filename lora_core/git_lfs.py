"""Files that git-lfs left as pointers: a few lines of text where the content should be."""

from __future__ import annotations

from pathlib import Path

from lora_core.errors import InputError, LoraCoreError, Problem
from lora_core.intake.files import open_regular

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_FIRST = b"version https://git-lfs.github.com/spec/"


def is_pointer(data: bytes) -> bool:
    """Say whether `data`, the beginning of a file, is that of a pointer."""
    return data.startswith(_FIRST)


def pointer_problem(path: Path) -> Problem | None:
    """Return a problem if the file at `path` is a pointer, else None; never raises."""
    try:
        with open_regular(path, InputError) as file:
            found = is_pointer(file.read(len(_FIRST)))
    except (OSError, LoraCoreError):
        return None
    return told(path) if found else None


def told(path: Path) -> Problem:
    """Return the problem that the file at `path` is a pointer."""
    return Problem(
        what="This is a git-lfs pointer, not the file itself",
        where=str(path),
        remedy="Fetch the content: `git lfs pull` in its repository, or download the file again.",
    )
