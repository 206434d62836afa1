"""Cache entries on disk: written whole or not at all, checked by hash when read."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 4
"""Goes up with what an entry says, and with the graph that is lowered."""
_INDEX = "entry.json"


class DamagedEntryError(Exception):
    """A cache entry is not what was written; the text says what is wrong."""


def write_entry(directory: Path, files: Mapping[str, bytes], content: Mapping[str, Any]) -> None:
    """Write `files`, and `content` as JSON, as `directory`; if another process was first, its entry stays.

    Raises `OSError`.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for name, data in files.items():
            (staging / name).write_bytes(data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        document = {"schema_version": SCHEMA_VERSION, "content": content, "files": digests}
        (staging / _INDEX).write_text(json.dumps({**document, "sha256": _digest(document)}), "utf-8")
        staging.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_entry(directory: Path) -> Mapping[str, Any]:
    """Return the content of the entry at `directory`, its files checked; raises `DamagedEntryError`."""
    try:
        document = json.loads((directory / _INDEX).read_text("utf-8"))
        if document["schema_version"] != SCHEMA_VERSION or document["sha256"] != _digest(document):
            raise DamagedEntryError(f"{_INDEX} does not match its hash")
        for name, expected in document["files"].items():
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != expected:
                raise DamagedEntryError(f"{name} does not match its hash")
        content: Mapping[str, Any] = document["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedEntryError(f"{type(error).__name__}: {error}") from error
    return content


def _digest(document: Mapping[str, Any]) -> str:
    content = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()
