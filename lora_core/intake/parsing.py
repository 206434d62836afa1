"""Whose fault it is that content cannot be read: the file's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_core.errors import BundleError, LoraCoreError

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""What code raises that takes apart content of another form than it was written for."""
_REMEDY = "Restore the file from a copy, or export the bundle again."


@contextmanager
def parsing(
    path: Path | str, what: str = "", *, error: type[LoraCoreError] = BundleError, remedy: str = _REMEDY
) -> Iterator[None]:
    """Run a block that takes apart a stranger's content; what it stumbles over makes that damaged or foreign.

    `what` names the content for messages (default: the name of the file), `error` is the class that is raised. Keep
    other work than reading out of the block: a mistake of ours in it would be called the file's.
    """
    try:
        yield
    except UNREADABLE as cause:
        told = f"{type(cause).__name__}: {str(cause).strip()[:200]}"
        named = what or Path(path).name
        raise error(f"{named} is damaged or foreign ({told})", where=str(path), remedy=remedy) from cause
