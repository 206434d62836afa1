"""`lora-core bench`: measure a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_core.cli.backend_command import SessionCommand
from lora_core.cli.table import size, table

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.runtime.bench import BenchReport, MethodSpeed

BASE = "base"


def bench(
    console: Console,
    *,
    bundle: Path,
    adapter: tuple[str, ...],
    prompt_tokens: int,
    decode_tokens: int,
    rounds: int,
    options: Mapping[str, Any],
    plot: Path | None,
    keep: Path | None,
    as_json: bool,
) -> None:
    """Measure, then print tables; `plot` writes the picture, `keep` the report."""
    import lora_core
    from lora_core.runtime.bench import BenchSettings

    report = lora_core.bench(
        bundle,
        adapters=adapter or None,
        settings=BenchSettings(prompt_tokens=prompt_tokens, decode_tokens=decode_tokens, rounds=rounds),
        options=options,
        emit=console.emit,
        hub=console.hub,
    )
    if plot is not None:
        from lora_core.runtime.plot import bench_svg

        plot.write_text(bench_svg(report), encoding="utf-8")
    if keep is not None:
        from lora_core.bundle.store import open_bundle
        from lora_core.html.files import write_report

        write_report("bench", report.to_json(), open_bundle(bundle), keep)
    if as_json:
        console.json(report.to_json())
    else:
        console.result("\n\n".join(_sections(report)))


def _sections(report: BenchReport) -> list[str]:
    before = ["before loading", None, size(report.before.resident), size(report.before.anonymous), None]
    loads = [
        [load.adapter or BASE, load.seconds, size(load.resident), size(load.anonymous), size(load.file_backed)]
        for load in report.loads
    ]
    speeds = [_speed("base, nothing else loaded", report.base_alone)]
    speeds += [_speed(method.adapter or BASE, method) for method in report.methods]
    sections = [
        table(["loaded", "seconds", "resident", "anonymous", "file-backed"], [before, *loads]),
        table(["method", "first token s", "tokens/s", "overhead"], speeds),
    ]
    if report.switch is not None:
        changed, same = report.switch.changed * 1000, report.switch.same * 1000
        sections.append(
            f"A first step takes {changed:.1f} ms after a change of adapter, and {same:.1f} ms without one: "
            f"the change itself {report.switch.seconds * 1000:.1f} ms."
        )
    sections.append("; ".join(f"{fact}: {value}" for fact, value in report.facts.items()))
    return sections


def _speed(name: str, method: MethodSpeed) -> list[Any]:
    overhead = "-" if method.overhead is None else f"{method.overhead:+.1%}"
    return [name, method.prefill_seconds, method.decode_tokens_per_second, overhead]


command = SessionCommand(
    "bench",
    callback=bench,
    help="Measure load time, time to first token, tokens/s and memory of BUNDLE, and what changing adapters costs.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Option(["--adapter"], multiple=True, metavar="NAME", help="Measure this one. Repeatable. Default: all."),
        click.Option(["--prompt-tokens"], type=click.IntRange(min=1), default=64, show_default=True),
        click.Option(["--decode-tokens"], type=click.IntRange(min=1), default=32, show_default=True),
        click.Option(["--rounds"], type=click.IntRange(min=1), default=3, show_default=True),
        click.Option(["--plot"], type=click.Path(dir_okay=False, path_type=Path), help="Write a picture (SVG) here."),
        click.Option(
            ["--report", "keep"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="Keep the report in this file, for `inspect --html PAGE --report FILE`.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
