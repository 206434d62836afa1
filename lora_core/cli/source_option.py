"""The option that names a model source, for the commands that take a model."""

from __future__ import annotations

import click

SOURCE = click.Option(
    ["--source"],
    metavar="NAME",
    help="Open the model with this source, `transformers` for instance. Default: the first that knows it.",
)
