"""Options of commands that open a session: how the base's weights are held in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

WEIGHT_CACHE = click.Option(
    ["--weight-cache"],
    type=click.Choice(["on", "off"]),
    help="Share the base's weights in memory among programs, where the backend has such a cache.",
)
PACKED_CACHE = click.Option(
    ["--packed-cache"],
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep packed weights in a file in DIR, which this process and later ones map instead of packing again.",
)


def session_options(weight_cache: str | None, packed_cache: Path | None = None) -> dict[str, Any]:
    """Return what was said on the command line as options of a session; what was not said is left to the backend."""
    options: dict[str, Any] = {}
    if weight_cache is not None:
        options["weight_cache"] = weight_cache == "on"
    if packed_cache is not None:
        options["packed_cache"] = packed_cache
    return options
