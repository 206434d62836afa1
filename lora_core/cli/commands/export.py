"""`lora-core export`: write a bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_core.adapters.targets import parse_targets
from lora_core.cli.adapter_options import ADAPTER, ADAPTER_FILES, references
from lora_core.cli.backend_command import ExportCommand
from lora_core.cli.source_option import SOURCE

if TYPE_CHECKING:
    from lora_core.cli.console import Console

DIRECTORY = click.Path(file_okay=False, path_type=Path)


def export(
    console: Console,
    *,
    backend: str,
    model: str,
    source: str | None,
    download: bool,
    adapter: tuple[str, ...],
    adapter_files: tuple[tuple[str, Path, Path], ...],
    policy: str | None,
    group_size: int | None,
    embedding: str | None,
    head: str | None,
    adapter_dtype: str | None,
    compact_tokenizer: bool,
    plan: Any,
    max_rank: int | None,
    targets: str | None,
    cache: Path | None,
    no_cache: bool,
    output: Path,
    force: bool,
    options: Mapping[str, Any],
) -> None:
    """Export, then say where the bundle is."""
    from lora_core.pipeline.export import export as write
    from lora_core.pipeline.request import ExportRequest

    request = ExportRequest(
        model=model,
        adapters=references(adapter, adapter_files),
        backend=backend,
        policy=policy,
        options=options,
        plan=plan,
        max_rank=max_rank,
        targets=None if targets is None else parse_targets(targets),
        group_size=group_size,
        embedding=embedding,
        head=head,
        adapter_dtype=adapter_dtype,
        compact_tokenizer=compact_tokenizer,
        cache=None if no_cache else cache or default_cache(),
        download=download,
        source=source,
    )
    bundle = write(request, output, force=force, emit=console.emit, hub=console.hub)
    names = ", ".join(each.name for each in bundle.manifest.adapters) or "none"
    console.result(f"{output}: {backend}, policy {bundle.manifest.policy['name']}, adapters: {names}")


def default_cache() -> Path:
    """Return the directory of lowered templates when none is given."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "lora-core" / "templates"


command = ExportCommand(
    "export",
    callback=export,
    help="Export a model with its adapters to a bundle: the base stored once, adapters beside it.",
    params=[
        click.Option(["--backend"], required=True, help="Backend, one of those `lora-core backends` lists."),
        click.Option(["--model"], required=True, help="Checkpoint directory, GGUF file, or hub id in the local cache."),
        SOURCE,
        click.Option(["--download"], is_flag=True, help="Allow hub ids of model and adapters to be downloaded."),
        ADAPTER,
        ADAPTER_FILES,
        click.Option(["--policy"], help="Quantization policy. Default: the first that the backend offers."),
        click.Option(["--group-size"], type=int, help="Group size of the policy's linear layers; 0: per channel."),
        click.Option(
            ["--embedding"], metavar="BITS,GROUP", help="Quantize embeddings: 8,0 is 8 bits per row; float: do not."
        ),
        click.Option(
            ["--head"], metavar="BITS,GROUP", help="Quantize the output head otherwise than the policy: 4,32, or float."
        ),
        click.Option(
            ["--adapter-dtype"],
            type=click.Choice(["fp32", "fp16", "int8"]),
            help="Type that adapters are stored in, where the backend has a choice. Default: the backend's.",
        ),
        click.Option(
            ["--compact-tokenizer"],
            is_flag=True,
            help="Write the base's tokenizer.json without the white space that means nothing, which may be half of it.",
        ),
        click.Option(
            ["--plan"],
            type=click.Choice(["union", "per-shape"]),
            default="union",
            show_default=True,
            help="One template with every slot at its largest rank, or one for each shape of adapter.",
        ),
        click.Option(["--max-rank"], type=click.IntRange(min=1), help="Reserve this rank for adapters to come."),
        click.Option(["--targets"], help="Reserve these layers too: q_proj,v_proj, a pattern, or all-linear."),
        click.Option(["--cache"], type=DIRECTORY, help="Cache of lowered templates. Default: ~/.cache/lora-core."),
        click.Option(["--no-cache"], is_flag=True, help="Lower anew, and keep nothing for the next time."),
        click.Option(["--output", "-o"], type=DIRECTORY, required=True, help="The bundle to write."),
        click.Option(["--force"], is_flag=True, help="Replace an existing bundle."),
    ],
)
