"""`lora-core convert`: write an adapter of any format that is read as PEFT saves it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command

if TYPE_CHECKING:
    from lora_core.cli.console import Console


def convert(console: Console, *, adapter: Path, model: str | None, download: bool, output: Path, force: bool) -> None:
    """Convert, then say what was written."""
    import lora_core

    read = lora_core.convert(
        adapter, output, model=model, download=download, force=force, emit=console.emit, hub=console.hub
    )
    count = len(read.updates)
    console.result(f"{output}: {count} module{'' if count == 1 else 's'} as a PEFT adapter")


command = Command(
    "convert",
    callback=convert,
    help="Write ADAPTER, of any format that is read, as PEFT saves adapters. Neither torch nor peft is needed.",
    params=[
        click.Argument(["adapter"], type=click.Path(path_type=Path)),
        click.Option(
            ["--model"], help="The base, if the adapter alone does not tell enough of it: a directory or hub id."
        ),
        click.Option(["--download"], is_flag=True, help="Allow an adapter given by its hub id to be downloaded."),
        click.Option(
            ["--output", "-o"], type=click.Path(path_type=Path), required=True, help="The directory to write."
        ),
        click.Option(["--force"], is_flag=True, help="Replace what is there."),
    ],
)
