"""Compare bundles byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lora_core.testing.check import Broken


def expect_same_files(expected: Path, found: Path, what: str) -> None:
    """Raise `Broken` unless two directories hold the same files with the same bytes; `what` says which they are."""
    one, other = file_hashes(expected), file_hashes(found)
    differences = [
        *(f"{name} is missing" for name in sorted(set(one) - set(other))),
        *(f"{name} is too many" for name in sorted(set(other) - set(one))),
        *(f"{name} differs" for name in sorted(set(one) & set(other)) if one[name] != other[name]),
    ]
    if differences:
        raise Broken(f"{what}: {', '.join(differences)}")


def file_hashes(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below `directory` but lock files, by its relative path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }
