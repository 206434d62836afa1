"""Which pages are made, and from what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from refdocs import listings
from refdocs.adapters import adapters_page
from refdocs.cli_help import cli_help
from refdocs.failures import errors_page
from refdocs.families import families_page
from refdocs.interface import backends, descriptors, events_page, hooks
from refdocs.manifest import manifest_page, records_schema_file, schema_file
from refdocs.modules import modules_page
from refdocs.options import options_page
from refdocs.projects import ROOT

PAGES: Mapping[str, Callable[[], str]] = {
    "docs/reference/adapters.md": adapters_page,
    "docs/reference/families.md": families_page,
    "docs/reference/cli-help.md": cli_help,
    "docs/reference/hooks.md": hooks,
    "docs/reference/descriptors.md": descriptors,
    "docs/reference/backend.md": backends,
    "docs/reference/events.md": events_page,
    "docs/reference/errors.md": errors_page,
    "docs/reference/options.md": options_page,
    "docs/reference/manifest.md": manifest_page,
    "docs/reference/manifest.schema.json": schema_file,
    "docs/reference/records.schema.json": records_schema_file,
    "docs/reference/public-modules.md": modules_page,
}


def write() -> list[Path]:
    """Write every page that is not as it should be and return their paths."""
    changed = []
    texts = {ROOT / path: make() for path, make in PAGES.items()}
    texts |= {page: listings.filled(page) for page in listings.pages()}
    for path, text in texts.items():
        if not path.exists() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            changed.append(path)
    return changed
