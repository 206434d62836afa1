"""Compare bundles byte for byte."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path


def differences(expected: Path, found: Path) -> list[str]:
    """Return how the files of two directories differ; nothing if they are the same with the same bytes."""
    return hash_differences(file_hashes(expected), file_hashes(found))


def hash_differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Return how two sets of files, hashes by relative path, differ."""
    return [
        *(f"{name} is missing" for name in sorted(set(expected) - set(found))),
        *(f"{name} is too many" for name in sorted(set(found) - set(expected))),
        *(f"{name} differs" for name in sorted(set(expected) & set(found)) if expected[name] != found[name]),
    ]


def file_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `directory` but lock files, by its relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
