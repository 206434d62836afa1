"""Names with a meaning inside a bundle's directory, and which paths an artifact may have."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

MANIFEST = "manifest.json"
RECORDS = "manifest"
"""Directory of the records of adapters, where there are too many for `manifest.json`."""
STATE = ".lora-core"
"""Directory for the lock, the staging area and the journal; it exists only while a change is under way."""
STAGING = "staging"
JOURNAL = "journal"
LOCK = "lock"
_RECORDS_FILE = re.compile(rf"{RECORDS}/[0-9a-f]{{1,64}}\.json")


def records_file(prefix: str) -> str:
    """Return the path of the file with the records whose keys begin with `prefix`."""
    return f"{RECORDS}/{prefix}.json"


def is_records_file(path: str) -> bool:
    """Say whether `path` is that of a file of records."""
    return _RECORDS_FILE.fullmatch(path) is not None


def prefix_of(records_file: str) -> str:
    """Return what the keys of the records in such a file begin with."""
    return PurePosixPath(records_file).stem


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
    if path in (MANIFEST, RECORDS) or PurePosixPath(path).parts[0] in (STATE, RECORDS):
        return "is reserved for lora-core"
    return None
