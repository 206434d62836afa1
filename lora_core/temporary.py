"""Directories that are gone afterwards, whatever comes."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ATTEMPTS, _PAUSE = 50, 0.01
"""How often, and how many seconds apart, a directory is removed that does not go."""


@contextmanager
def removed_afterwards(directory: Path) -> Iterator[None]:
    """Remove `directory` and what is in it at the end of a block, also if an interruption comes while it is removed."""
    try:
        try:
            yield
        finally:
            _remove(directory)
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    """Remove a tree into which a process that was started in the block may write for some milliseconds more."""
    for _ in range(_ATTEMPTS):
        shutil.rmtree(directory, ignore_errors=True)
        if not os.path.lexists(directory):
            return
        time.sleep(_PAUSE)


@contextmanager
def temporary_directory(purpose: str = "") -> Iterator[Path]:
    """Make a private directory among temporary files for a block.

    `tempfile.TemporaryDirectory` forgets its directory before it removes it: a signal in that moment leaves it behind.
    """
    import tempfile  # its imports cost more than a short command has

    path = Path(tempfile.gettempdir()) / "-".join(filter(None, ("lora-core", purpose, os.urandom(8).hex())))
    with removed_afterwards(path):
        path.mkdir(mode=0o700)
        yield path
