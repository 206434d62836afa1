"""`lora-core pack-all`: a package for every adapter of a source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.cli.commands.pack import SIGN
from lora_core.errors import ExitCode

if TYPE_CHECKING:
    from lora_core.cli.console import Console


def pack_all(
    console: Console,
    *,
    source: str,
    bundle: Path,
    output: Path,
    sign: Path | None,
    executor: str,
    jobs: int | None,
    address: str | None,
    as_json: bool,
) -> ExitCode:
    """Pack, then say how many there are and why others are not."""
    import lora_core

    report = lora_core.pack_all(
        source,
        bundle,
        out=output,
        sign=sign,
        executor=executor,
        processes=jobs,
        address=address,
        emit=console.emit,
        hub=console.hub,
    )
    if as_json:
        console.json(report.to_json())
    else:
        done = f"{report.packed} packed, {report.unchanged} unchanged, {len(report.failed)} failed"
        console.result(f"{output}: {done}, in {report.seconds:.1f} s")
        for each in report.failed[:_SHOWN]:
            for problem in each.problems:
                console.result(f"{each.place}: {problem}")
        if len(report.failed) > _SHOWN:
            console.result(f"... all {len(report.failed)} are in {output / 'report.json'}")
    return ExitCode.OK if report.passed else ExitCode.INPUT


_SHOWN = 20

command = Command(
    "pack-all",
    multiplies=False,
    callback=pack_all,
    help="Write a package for BUNDLE of every adapter below SOURCE, a directory or a URL that fsspec reads. What an "
    "earlier run has done is left alone.",
    params=[
        click.Argument(["source"]),
        click.Option(
            ["--bundle"],
            required=True,
            type=click.Path(file_okay=False, path_type=Path),
            help="The bundle that the packages are for.",
        ),
        click.Option(
            ["-o", "--output"],
            required=True,
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="A new directory, or that of an earlier run.",
        ),
        SIGN,
        click.Option(["--executor"], default="local", show_default=True, help="Who works: local, or one of a plugin."),
        click.Option(["--jobs"], type=click.IntRange(min=1), help="Processes at a time. Default: one for each core."),
        click.Option(["--address"], help="The executor's cluster. Default: this machine."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
