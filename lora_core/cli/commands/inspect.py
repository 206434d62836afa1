"""`lora-core inspect`: what a bundle holds and what is shared."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.cli.table import size, table
from lora_core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.pipeline.inspect import InspectReport
    from lora_core.sharing.report import SharingReport


def inspect(console: Console, *, bundle: Path, as_json: bool, html: Path | None, reports: tuple[Path, ...]) -> ExitCode:
    """Print the report, or write it as a page; anything wrong with the bundle is exit code 5."""
    import lora_core

    if reports and html is None:
        raise UsageError("--report adds numbers to a page", remedy="Say --html PAGE too.")
    report = lora_core.inspect(bundle, emit=console.emit, hub=console.hub)
    if html is not None:
        from lora_core.html.page import write_page

        write_page(report, html, reports=reports)
    if as_json:
        console.json(report.to_json())
    elif html is not None:
        console.result(str(html))
    else:
        console.result("\n\n".join(_sections(bundle, report)))
    return ExitCode.OK if report.passed else ExitCode.CHECK_FAILED


def _sections(path: Path, report: InspectReport) -> Iterator[str]:
    manifest = report.bundle.manifest
    yield "\n".join(
        [
            f"{path}: {manifest.base.name} ({manifest.base.family}) for {manifest.backend}",
            f"policy {manifest.policy.get('name', '?')}, {size(report.size)} in {len(manifest.artifacts)} files",
            f"foundation {manifest.foundation}",
        ]
    )
    yield table(
        ["file", "role", "adapter", "bytes", "sha256"],
        [[each.path, each.role, each.adapter, each.size, each.sha256[:16]] for each in manifest.artifacts],
    )
    yield table(
        ["method", "program", "adapter"],
        [[each.name, each.program, each.adapter or "(base)"] for each in manifest.methods],
    )
    if manifest.adapters:
        yield table(
            ["adapter", "rank", "modules", "bytes", "digest"],
            [
                [each.name, each.rank, each.modules, report.adapter_size(each.name), each.digest[:16]]
                for each in manifest.adapters
            ],
        )
    yield from _sharing(report.sharing)
    if report.problems:
        yield "\n".join(["Problems:", *(f"  - {problem}" for problem in report.problems)])


def _sharing(report: SharingReport) -> Iterator[str]:
    rows = [[each.name, each.blobs, each.total, each.shared, each.unique] for each in report.groups]
    yield "Stored tensors, by the hashes of their bytes:\n" + table(
        ["group", "tensors", "bytes", "shared", "of one owner"], rows
    )
    unique = [[owner, report.separate[owner], count] for owner, count in report.unique.items()]
    yield table(["owner", "reads bytes", "of its own"], unique)
    wasted = sum(each.wasted for each in report.duplicates)
    yield (
        f"{size(report.total)} stored, {size(report.shared)} of it shared; separate exports would store "
        f"{size(report.separately)}: {size(report.saved)} saved. Stored twice: {size(wasted)}."
    )


command = Command(
    "inspect",
    multiplies=False,
    callback=inspect,
    help="Show files, methods and adapters of BUNDLE, and what they share, from the hashes of the stored bytes.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
        click.Option(["--html"], type=click.Path(dir_okay=False, path_type=Path), help="Write a page to this file."),
        click.Option(
            ["--report", "reports"],
            multiple=True,
            type=click.Path(dir_okay=False, path_type=Path),
            help="Show this report of `verify` or `bench` in the page. Repeatable.",
        ),
    ],
)
