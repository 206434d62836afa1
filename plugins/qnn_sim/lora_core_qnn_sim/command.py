"""`lora-core qairt`: the vendor's files from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.errors import CheckFailedError, UnsupportedError
from lora_core_qnn_sim.handover import names

if TYPE_CHECKING:
    from lora_core.cli.console import Console


def qairt(console: Console, *, bundle: Path, output: Path, check: bool) -> None:
    """Write the files, say for which adapters, and ask the vendor's libraries about them."""
    from lora_core.bundle.store import open_bundle
    from lora_core_qnn_sim.handover.from_bundle import handover_from_bundle

    opened = open_bundle(bundle, console.emit)
    if opened.manifest.backend != "qnn_sim":
        what = f"{bundle} is of backend {opened.manifest.backend!r}"
        raise UnsupportedError(what, remedy="Give a bundle exported with --backend qnn_sim.")
    adapters = handover_from_bundle(opened, output)
    console.result(f"{output}: files for the vendor's tools, adapters {', '.join(adapters)}")
    if check:
        _check(console, output / names.GENIE)


def _check(console: Console, config: Path) -> None:
    from lora_core_qnn_sim.vendor.genie import check_genie
    from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED

    verdict = check_genie(config)
    console.result(f"{config.name}: {verdict}")
    if verdict.outcome == "refused":
        raise CheckFailedError(f"Genie does not take {config.name}: {verdict.detail}", where=str(config))
    if verdict.detail == NOT_INSTALLED:
        console.note("Qualcomm's libraries come with `pip install onnxruntime-qnn`, under Qualcomm's licence.")


command = Command(
    "qairt",
    callback=qairt,
    help="Write the files that the vendor's tools take for every adapter of BUNDLE, added ones too.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Option(
            ["-o", "--output"], type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory."
        ),
        click.Option(
            ["--check"],
            is_flag=True,
            help="Ask Qualcomm's own libraries about what was written, where onnxruntime-qnn is installed.",
        ),
    ],
)
