"""Files of an XNNPACK bundle as they are written, and what must be there before anything is linked."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError
from lora_core.pte import Buffer

FOUNDATION_FILE = "foundation.ptd"
LINK_STAGE = "Link adapters"
MARK_DETAIL = "foundation_mark"
"""Where a manifest's detail records the mark of the foundation (`files/marks.py`)."""


def write_parts(path: Path, parts: Sequence[Buffer]) -> None:
    """Write buffers one after another into a new file."""
    with path.open("xb") as file:
        file.writelines(parts)


def tool_versions() -> dict[str, str]:
    """Return the versions of what lowers programs, for the manifest."""
    return {name: version(name) for name in ("executorch", "torch", "torchao")}


def require_template(bundle: Bundle) -> None:
    """Raise `BundleError` if the bundle was exported without any room for adapters."""
    if not bundle.manifest.plans:
        raise BundleError(
            "The bundle has no template: it was exported without adapters and without reserved slots.",
            where=str(bundle.path),
            remedy="Export it with an adapter, or with --max-rank N --targets NAMES to reserve room.",
        )
