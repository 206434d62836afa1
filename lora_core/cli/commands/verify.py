"""`lora-core verify`: compare a bundle's numbers with a reference, and its files with what they claim."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_core.cli.adapter_options import ADAPTER, ADAPTER_FILES, references
from lora_core.cli.backend_command import SessionCommand
from lora_core.cli.source_option import SOURCE
from lora_core.cli.table import table
from lora_core.errors import ExitCode

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.pipeline.verify import VerifyReport


def verify(
    console: Console,
    *,
    bundle: Path,
    model: str,
    source: str | None,
    adapter: tuple[str, ...],
    adapter_files: tuple[tuple[str, Path, Path], ...],
    prompt: tuple[str, ...],
    tokens: int | None,
    reference: Any,
    options: Mapping[str, Any],
    keep: Path | None,
    as_json: bool,
) -> ExitCode:
    """Print the report; 5 if a check failed, 4 if none failed but no method could be run here."""
    import lora_core

    report = lora_core.verify(
        bundle,
        model,
        adapters=references(adapter, adapter_files),
        prompts=prompt,
        tokens=tokens,
        reference=reference,
        options=options,
        source=source,
        emit=console.emit,
        hub=console.hub,
    )
    if keep is not None:
        from lora_core.html.files import write_report

        write_report("verify", report.to_json(), report.bundle, keep)
    if as_json:
        console.json(report.to_json())
    else:
        console.result("\n\n".join(_sections(report)))
    if not report.passed:
        return ExitCode.CHECK_FAILED
    return ExitCode.OK if report.ran else ExitCode.UNSUPPORTED


def _sections(report: VerifyReport) -> Iterator[str]:
    rows = [[each.check, each.subject, each.outcome.value, each.detail] for each in report.findings]
    yield table(["check", "of", "outcome", "detail"], rows)
    numbers = [
        [
            each.method,
            each.numbers.max_error,
            each.numbers.mean_error,
            f"{each.numbers.kl:.2g}",
            f"{each.numbers.top1:.1%}",
            f"{each.numbers.greedy:.1%}",
            f"{each.effect.ratio:.4f}" if each.effect is not None else None,
            f"{each.effect.direction:.4f}" if each.effect is not None else None,
            each.numbers.positions,
        ]
        for each in report.methods
        if each.numbers is not None
    ]
    if numbers:
        yield table(
            ["method", "max error", "mean error", "KL", "top-1", "greedy", "effect", "cosine", "positions"], numbers
        )
        yield f"Compared with {report.reference}. Limits: {report.limits.reason}"
    verdict = "passed" if report.passed else f"failed: {len(report.failures)} of {len(report.findings)} checks"
    unchecked = f"; {len(report.unchecked)} could not be made" if report.unchecked else ""
    yield f"{verdict}{unchecked}"


command = SessionCommand(
    "verify",
    callback=verify,
    help="Compare every method of BUNDLE with transformers and peft (or, without them, with the eager module), and "
    "check hashes, sharing and fingerprints.",
    params=[
        click.Argument(["bundle"], type=click.Path(file_okay=False, path_type=Path)),
        click.Option(["--model"], required=True, help="The model that was exported."),
        SOURCE,
        ADAPTER,
        ADAPTER_FILES,
        click.Option(["--prompt"], multiple=True, help="Compare on this text. Repeatable. Default: a few of our own."),
        click.Option(["--tokens"], type=click.IntRange(min=1), help="Steps after each prompt. Default: 16."),
        click.Option(
            ["--reference"],
            type=click.Choice(["auto", "transformers", "eager"]),
            default="auto",
            show_default=True,
            help="What to compare with.",
        ),
        click.Option(
            ["--report", "keep"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="Also write the report to this file, for `inspect --html`.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
