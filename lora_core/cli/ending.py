"""How the process can end otherwise than by itself."""

from __future__ import annotations


class Terminated(KeyboardInterrupt):
    """Somebody asked the process to end (SIGTERM); what a command made for itself is removed as on an interruption."""


def starved(error: ImportError) -> bool:
    """Say whether a library could not be loaded for want of memory."""
    return any(said in str(error) for said in ("failed to map segment", "annot allocate memory"))
