"""Whose fault it is that content cannot be read: the file's."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_core.errors import BundleError

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, struct.error)
"""What code raises that takes apart content of another form than it was written for."""
_REMEDY = "Restore the file from a copy, or export the bundle again."


@contextmanager
def parsing(path: Path | str, what: str = "") -> Iterator[None]:
    """Run a block that takes apart content of a bundle; what it stumbles over makes the bundle damaged or foreign.

    `what` names the content for messages (default: the name of the file). Keep other work than reading out of the
    block: a mistake of ours in it would be called the bundle's.
    """
    try:
        yield
    except UNREADABLE as error:
        told = f"{type(error).__name__}: {str(error).strip()[:200]}"
        named = what or Path(path).name
        raise BundleError(f"{named} is damaged or foreign ({told})", where=str(path), remedy=_REMEDY) from error
