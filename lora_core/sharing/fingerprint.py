"""Fingerprints: what identifies stored bytes."""

from __future__ import annotations

from lora_core.bundle.bundle import Bundle
from lora_core.bundle.hashing import file_sha256
from lora_core.errors import BundleError


def foundation_file_fingerprint(bundle: Bundle) -> str:
    """Return the fingerprint of a foundation that is a file of its own: the SHA-256 of its bytes on disk.

    For backends whose bundles have exactly one artifact with the role `foundation`; raises `BundleError` otherwise.
    """
    files = [artifact for artifact in bundle.manifest.base_artifacts if artifact.role == "foundation"]
    if len(files) != 1:
        raise BundleError(
            f"The bundle has {len(files)} foundation files where one is expected.", where=str(bundle.path)
        )
    return file_sha256(bundle.file(files[0]))
