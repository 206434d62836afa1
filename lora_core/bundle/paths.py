"""Names with a meaning inside a bundle's directory, and which paths an artifact may have."""

from __future__ import annotations

from pathlib import PurePosixPath

MANIFEST = "manifest.json"
STATE = ".lora-core"
"""Directory for the lock, the staging area and the journal; it exists only while a change is under way."""
STAGING = "staging"
JOURNAL = "journal"
LOCK = "lock"


def why_unsafe(path: str) -> str | None:
    """Say why `path` cannot be an artifact's path: it must stay inside the bundle and out of lora-core's own files."""
    if not path or "\0" in path:
        return "is empty or holds a NUL character"
    if "\\" in path:
        return "holds a backslash"
    if path.startswith("/") or (len(path) > 1 and path[1] == ":"):
        return "is absolute"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "has an empty, '.' or '..' part"
    if path == MANIFEST or PurePosixPath(path).parts[0] == STATE:
        return "is reserved for lora-core"
    return None
