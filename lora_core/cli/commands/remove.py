"""`lora-core remove`: remove adapters from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command

if TYPE_CHECKING:
    from lora_core.cli.console import Console


def remove(console: Console, *, bundle: Path, names: tuple[str, ...]) -> None:
    """Remove, then say what is left."""
    import lora_core

    changed = lora_core.remove(bundle, names, emit=console.emit, hub=console.hub)
    adapters = changed.manifest.adapters
    left = f"{len(adapters)} adapters" if len(adapters) > 10 else ", ".join(each.name for each in adapters) or "none"
    console.result(f"{bundle}: removed {', '.join(names)}; adapters left: {left}")


command = Command(
    "remove",
    multiplies=False,
    callback=remove,
    help="Remove the adapters NAMES from BUNDLE.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Argument(["names"], nargs=-1, required=True, metavar="NAMES..."),
    ],
)
