"""`lora-core ship`: what goes with an app, and its adapters as packages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.cli.commands.pack import SIGN
from lora_core.cli.table import size, table

if TYPE_CHECKING:
    from lora_core.cli.console import Console


def ship(console: Console, *, bundle: Path, output: Path, sign: Path | None) -> None:
    """Split the bundle, then list what was written."""
    import lora_core

    shipment = lora_core.ship(bundle, output, sign=sign, emit=console.emit, hub=console.hub)
    rows = [[str(each.path), each.name, each.size, each.digest[:16]] for each in shipment.packages]
    app = sum(artifact.size for artifact in shipment.app.manifest.artifacts)
    console.result(f"{shipment.app.path}: {size(app)}, without adapters")
    if rows:
        console.result(table(["package", "adapter", "bytes", "digest"], rows))


command = Command(
    "ship",
    multiplies=False,
    callback=ship,
    help="Split BUNDLE: DIR/app is the bundle without adapters, to go with an app; DIR/packages has a package for each "
    "adapter.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Option(
            ["-o", "--output"],
            required=True,
            type=click.Path(file_okay=False, path_type=Path),
            metavar="DIR",
            help="A new or empty directory.",
        ),
        SIGN,
    ],
)
