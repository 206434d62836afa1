"""One self-contained page about a bundle: what it holds, what is shared, and what verify and bench measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_core.bundle.durable import storage_errors
from lora_core.html.areas import HEIGHT, WIDTH, tiles
from lora_core.html.files import read_reports
from lora_core.pipeline.inspect import InspectReport
from lora_core.sharing.report import owners_of
from lora_core.units import size

_TEMPLATE = "page.html.j2"


def write_page(report: InspectReport, path: Path, *, reports: Sequence[Path] = ()) -> None:
    """Write the page of `report` to `path`; `reports` are files that `verify` and `bench` kept.

    Raises `InputError` for a file that is no report of this bundle, `StorageError` if a file cannot be read or written.
    """
    text = render(report, read_reports(reports, report.bundle))
    with storage_errors("write", path):
        path.write_text(text, "utf-8")


def render(report: InspectReport, measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page as HTML that loads nothing; `measured` are reports by kind (`verify`, `bench`)."""
    import jinja2  # not needed by anything else that inspect does

    from lora_core.version import __version__

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=size, percent=_percent, number=_number)
    manifest = report.bundle.manifest
    return environment.get_template(_TEMPLATE).render(
        version=__version__,
        report=report,
        manifest=manifest,
        sharing=report.sharing,
        tiles=tiles(report.sharing),
        owners=owners_of(manifest.methods),
        width=WIDTH,
        height=HEIGHT,
        wasted=sum(duplicate.wasted for duplicate in report.sharing.duplicates),
        verify=measured.get("verify"),
        bench=measured.get("bench"),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
