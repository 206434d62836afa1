"""`lora-core add`: link adapters into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.adapter_options import (
    ADAPTER,
    ADAPTER_FILES,
    each_directory,
    package_references,
    references,
    renamed,
)
from lora_core.cli.command import Command
from lora_core.cli.source_option import SOURCE
from lora_core.errors import UsageError

if TYPE_CHECKING:
    from lora_core.cli.console import Console

DIRECTORY = click.Path(file_okay=False, path_type=Path)


def add(
    console: Console,
    *,
    bundle: Path,
    adapter: tuple[str, ...],
    adapter_files: tuple[tuple[str, Path, Path], ...],
    from_dir: Path | None,
    packages: tuple[str, ...],
    trust: tuple[Path, ...],
    jobs: int,
    model: str | None,
    source: str | None,
    download: bool,
) -> None:
    """Link, then say what was added."""
    import lora_core
    from lora_core.bundle.store import open_bundle

    wanted = (*references(adapter, adapter_files), *package_references(packages))
    if from_dir is not None:
        reserved = console.hub.spec_of(open_bundle(bundle, console.emit)).reserved
        more = each_directory(from_dir, taken=[each.name for each in wanted], reserved=reserved)
        for line in renamed(more):
            console.result(line)
        wanted = (*wanted, *more)
    if not wanted:
        raise UsageError("There is nothing to add", remedy="Give --adapter NAME=DIR, --package FILE or --from-dir DIR.")
    changed = lora_core.add(
        bundle,
        wanted,
        jobs=jobs,
        trust=trust,
        model=model,
        source=source,
        download=download,
        emit=console.emit,
        hub=console.hub,
    )
    names = [reference.name for reference in wanted]
    told = ", ".join(names) if len(names) <= 10 else f"{len(names)} adapters"
    console.result(f"{bundle}: added {told}; it has {len(changed.manifest.adapters)} now")


command = Command(
    "add",
    multiplies=False,
    callback=add,
    help="Link adapters into BUNDLE without lowering anything again; neither the base weights nor torch are needed.",
    params=[
        click.Argument(["bundle"], type=DIRECTORY),
        ADAPTER,
        ADAPTER_FILES,
        click.Option(
            ["--from-dir"], type=DIRECTORY, help="Add every subdirectory of this directory, by its name or a safe one."
        ),
        click.Option(
            ["--package", "packages"],
            multiple=True,
            metavar="[NAME=]FILE",
            help="An adapter as a package that `pack` wrote. Repeatable.",
        ),
        click.Option(
            ["--trust"],
            multiple=True,
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="PUBKEY",
            help="Accept only packages that this Ed25519 public key (PEM) signed. Repeatable.",
        ),
        click.Option(["--model"], help="The bundle's base, for DoRA, trained biases and whole modules."),
        SOURCE,
        click.Option(["--download"], is_flag=True, help="Allow adapters given by hub ids to be downloaded."),
        click.Option(["--jobs"], type=click.IntRange(min=1), default=1, show_default=True, help="Processes that link."),
    ],
)
