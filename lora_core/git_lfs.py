"""Files that git-lfs left as pointers: a few lines of text where the content should be."""

from __future__ import annotations

from pathlib import Path

from lora_core.errors import Problem

# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_FIRST = b"version https://git-lfs.github.com/spec/"


def is_pointer(data: bytes) -> bool:
    """Say whether `data`, the beginning of a file, is that of a pointer."""
    return data.startswith(_FIRST)


def pointer_problem(path: Path) -> Problem | None:
    """Return a problem if the file at `path` is a pointer, else None; never raises."""
    try:
        with path.open("rb") as file:
            found = is_pointer(file.read(len(_FIRST)))
    except OSError:
        return None
    if not found:
        return None
    return Problem(
        what="This is a git-lfs pointer, not the file itself",
        where=str(path),
        remedy="Fetch the content: `git lfs pull` in its repository, or download the file again.",
    )
