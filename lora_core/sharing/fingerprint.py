"""Fingerprints: what identifies stored bytes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.errors import BundleError

if TYPE_CHECKING:
    from lora_core.bundle.bundle import Bundle


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as lower-case hex; raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def foundation_file_fingerprint(bundle: Bundle) -> str:
    """Return the fingerprint of a foundation that is a file of its own: the SHA-256 of its bytes on disk.

    For backends whose bundles have exactly one artifact with the role `foundation`; raises `BundleError` otherwise.
    """
    files = [artifact for artifact in bundle.manifest.artifacts if artifact.role == "foundation"]
    if len(files) != 1:
        raise BundleError(
            f"The bundle has {len(files)} foundation files where one is expected.", where=str(bundle.path)
        )
    return file_sha256(bundle.file(files[0]))
