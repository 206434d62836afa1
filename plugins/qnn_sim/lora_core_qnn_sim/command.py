"""`lora-core qairt`: the vendor's files from a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.errors import CheckFailedError, UnsupportedError
from lora_core_qnn_sim.vendor.socs import DEFAULT_SOC, SOCS

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core_qnn_sim.handover.documents import WeightsKey


def qairt(
    console: Console, *, bundle: Path, output: Path, check: bool, soc: str, check_layers: int, weights_key: WeightsKey
) -> None:
    """Write the files, say for which adapters, and ask the vendor's libraries about them."""
    from lora_core.bundle.store import open_bundle
    from lora_core_qnn_sim.handover.from_bundle import handover_from_bundle

    opened = open_bundle(bundle, console.emit)
    if opened.manifest.backend != "qnn_sim":
        what = f"{bundle} is of backend {opened.manifest.backend!r}"
        raise UnsupportedError(what, remedy="Give a bundle exported with --backend qnn_sim.")
    adapters = handover_from_bundle(opened, output, weights_key)
    console.result(f"{output}: files for the vendor's tools, adapters {', '.join(adapters)}")
    if check:
        from lora_core_qnn_sim.vendor.checking import check_handover

        report = check_handover(opened, output, SOCS[soc], check_layers, console.emit)
        for line in report.lines:
            console.result(line)
        if report.refusals:
            raise CheckFailedError(list(report.refusals))
        if not report.asked:
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
            ["--weights-key"],
            type=click.Choice(["safetensors", "weights"]),
            default="safetensors",
            show_default=True,
            help="What adapters' weights stand under in lora_adapter_weights.yaml: `safetensors` as Qualcomm documents "
            "LoRA v3, `weights` as its package qairt-dev 0.13 writes.",
        ),
        click.Option(
            ["--check"],
            is_flag=True,
            help="Ask Qualcomm's own libraries about what was written, where onnxruntime-qnn is installed: Genie takes "
            "the configuration, the first layers are compiled with A and B as inputs and for hot switch by alpha, and "
            "executed in emulation beside the simulator, and Genie answers as the base and as each adapter.",
        ),
        click.Option(
            ["--soc"],
            type=click.Choice(sorted(SOCS), case_sensitive=False),
            default=DEFAULT_SOC,
            show_default=True,
            help="What --check compiles for.",
        ),
        click.Option(
            ["--check-layers"],
            type=click.IntRange(min=1),
            default=1,
            show_default=True,
            help="How many layers --check compiles; each takes about a second to execute in emulation.",
        ),
    ],
)
