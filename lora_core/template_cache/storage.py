"""Kept templates on disk: written whole or not at all, checked by hash when read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lora_core.temporary import removed_afterwards

STORAGE_VERSION = 1
_INDEX = "entry.json"
_ABANDONED = 24 * 3600.0
"""Seconds after which what was begun is no longer being written: whoever wrote it was killed."""


class DamagedTemplateError(Exception):
    """What is kept is not what was written; the text says what is wrong."""


def write_kept(directory: Path, files: Mapping[str, bytes], content: Mapping[str, Any]) -> None:
    """Write `files`, and `content` as JSON, as `directory`; if another process was first, what it wrote stays.

    Raises `OSError`.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory.parent)
    staging = directory.parent / f".{directory.name}-{os.urandom(4).hex()}"
    with removed_afterwards(staging):
        try:
            staging.mkdir(mode=0o700)
            for name, data in files.items():
                (staging / name).write_bytes(data)
            digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            document = {"schema_version": STORAGE_VERSION, "content": content, "files": digests}
            # Keys keep their order: a backend may lay out a file in the order in which it reads them back.
            (staging / _INDEX).write_text(json.dumps({**document, "sha256": _digest(document)}), "utf-8")
            staging.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise


def _remove_abandoned(cache: Path) -> None:
    for begun in cache.glob(".*-*"):
        with suppress(OSError):  # another process removes it too
            if time.time() - begun.stat().st_mtime > _ABANDONED:
                shutil.rmtree(begun)


def read_kept(directory: Path) -> Mapping[str, Any]:
    """Return the content of `directory`, its files checked; raises `DamagedTemplateError`."""
    try:
        document = json.loads((directory / _INDEX).read_text("utf-8"))
        if document["schema_version"] != STORAGE_VERSION or document["sha256"] != _digest(document):
            raise DamagedTemplateError(f"{_INDEX} does not match its hash")
        for name, expected in document["files"].items():
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != expected:
                raise DamagedTemplateError(f"{name} does not match its hash")
        content: Mapping[str, Any] = document["content"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedTemplateError(f"{type(error).__name__}: {error}") from error
    return content


def _digest(document: Mapping[str, Any]) -> str:
    fields = {name: document[name] for name in ("schema_version", "content", "files")}
    return hashlib.sha256(json.dumps(fields).encode("utf-8")).hexdigest()
