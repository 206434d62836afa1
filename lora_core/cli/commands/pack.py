"""`lora-core pack`: one adapter as one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.adapters.reference import AdapterReference
from lora_core.cli.command import Command
from lora_core.cli.table import size

if TYPE_CHECKING:
    from lora_core.cli.console import Console

SIGN = click.Option(
    ["--sign"],
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="KEY",
    help="Sign with this Ed25519 private key (PEM, without a password).",
)


def pack(console: Console, *, bundle: Path, adapter: str, output: Path | None, sign: Path | None) -> None:
    """Write the package, then say where it is."""
    import lora_core

    wanted = AdapterReference.from_text(adapter) if "=" in adapter else adapter
    packed = lora_core.pack(bundle, wanted, out=output, sign=sign, emit=console.emit, hub=console.hub)
    console.result(f"{packed.path}: adapter {packed.name}, {size(packed.size)}, digest {packed.digest}")


command = Command(
    "pack",
    multiplies=False,
    callback=pack,
    help="Write one adapter as a package: one file that `add --package` or a device links into BUNDLE. ADAPTER is an "
    "adapter of the bundle by its name, or NAME=DIR[@STRENGTH] for one that it does not have.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Argument(["adapter"]),
        click.Option(
            ["-o", "--output"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="The file to write. [default: NAME.lora here]",
        ),
        SIGN,
    ],
)
