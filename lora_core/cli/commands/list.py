"""`lora-core list`: what adapters a directory has, and what they fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.cli.table import table

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.pipeline.catalogue import CatalogueEntry, Fit


def list_adapters(console: Console, *, source: Path, bundles: tuple[Path, ...], as_json: bool) -> None:
    """List, then say why what does not fit does not."""
    import lora_core

    found = list(lora_core.catalogue(source, bundles=bundles, emit=console.emit, hub=console.hub))
    if as_json:
        console.json([entry.to_json() for entry in found])
        return
    header = ["adapter", "place", "base", "rank", "modules", "bytes", "digest", *(f"fits {path}" for path in bundles)]
    console.result(table(header, [_row(entry) for entry in found]))
    for entry in found:
        for line in _complaints(entry):
            console.result(line)


def _row(entry: CatalogueEntry) -> list[object]:
    digest = None if entry.digest is None else entry.digest[:16]
    about = [entry.name, entry.place, entry.base, entry.rank, entry.modules, entry.size, digest]
    return [*about, *(_fitting(fit) for fit in entry.fits)]


def _fitting(fit: Fit) -> str:
    if fit.problems:
        return "no"
    return f"template {fit.plan}{'?' if fit.doubt else ''}"


def _complaints(entry: CatalogueEntry) -> list[str]:
    said = [str(problem) for problem in entry.problems]
    for fit in entry.fits:
        said += [f"{fit.bundle}: {problem}" for problem in fit.problems if str(problem) not in said]
        said += [f"{fit.bundle}: {fit.doubt}"] if fit.doubt else []
    return [f"{entry.name}: {each}" for each in said]


command = Command(
    "list",
    multiplies=False,
    callback=list_adapters,
    help="List the adapters and packages below SOURCE: base, rank, size, digest, and whether they fit a bundle.",
    params=[
        click.Argument(["source"], type=click.Path(path_type=Path)),
        click.Option(
            ["--bundle", "bundles"],
            multiple=True,
            type=click.Path(file_okay=False, path_type=Path),
            help="Say which of this bundle's templates each adapter fits, and why not. Repeatable.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
