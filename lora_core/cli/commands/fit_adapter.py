"""`lora-core fit-adapter`: an adapter that makes up for the rounding of a bundle's base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.adapters.reference import AdapterReference
from lora_core.cli.command import Command
from lora_core.cli.source_option import SOURCE

if TYPE_CHECKING:
    from lora_core.cli.console import Console


def fit_adapter(
    console: Console,
    *,
    bundle: Path,
    adapter: str,
    model: str,
    source: str | None,
    download: bool,
    calibration: Path | None,
    rank: int | None,
    output: Path,
    force: bool,
) -> None:
    """Fit, then say what was gained and how to go on."""
    import lora_core

    fitted = lora_core.fit_adapter(
        bundle,
        AdapterReference.from_text(adapter),
        model,
        out=output,
        calibration=calibration,
        rank=rank,
        source=source,
        download=download,
        force=force,
        emit=console.emit,
        hub=console.hub,
    )
    name = fitted.adapter.name
    console.result(
        f"{output}: adapter {name} for this base alone; error of its layers' outputs {fitted.before:.2%} before, "
        f"{fitted.after:.2%} now. Link it: lora-core add {bundle} --adapter {_free(name, bundle, console)}={output}"
    )


def _free(name: str, bundle: Path, console: Console) -> str:
    """Return a name for the fitted adapter beside what the bundle has."""
    from lora_core.bundle.store import open_bundle

    records = open_bundle(bundle, console.emit).manifest.records
    free = name
    while records.find(free, like=True) is not None:
        free += "_fitted"
    return free


command = Command(
    "fit-adapter",
    callback=fit_adapter,
    multiplies=False,  # eigenvectors of a layer take thirty times the processor time where threads wait for each other
    help="Choose A and B of ADAPTER (NAME=DIR[@STRENGTH], or a composite) anew, so that they also make up for what "
    "rounding lost in the base of BUNDLE, and write them as a PEFT adapter that `add` and `export` take for this base "
    "alone. Rank and size stay what they are. Needs the base's weights, and takes a minute or so.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Argument(["adapter"]),
        click.Option(["--model"], required=True, help="The base that the bundle was exported from."),
        SOURCE,
        click.Option(["--download"], is_flag=True, help="Allow an adapter given by its hub id to be downloaded."),
        click.Option(
            ["--calibration"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="Prompts to fit on: text, one a line, or .json with lists of token ids; best of what the adapter was "
            "trained on. [default: a small built-in set]",
        ),
        click.Option(
            ["--rank"], type=click.IntRange(min=1), help="The rank of each slot. [default: that of the adapter]"
        ),
        click.Option(
            ["--output", "-o"], type=click.Path(path_type=Path), required=True, help="The directory to write."
        ),
        click.Option(["--force"], is_flag=True, help="Replace what is there."),
    ],
)
