"""`lora-core conform`: run the conformance kit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.cli.table import table
from lora_core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from lora_core.cli.console import Console
    from lora_core.testing.conform_report import ConformanceReport


def conform(
    console: Console,
    *,
    backend: str,
    policy: tuple[str, ...],
    check: tuple[str, ...],
    known_gap: tuple[str, ...],
    as_json: bool,
) -> ExitCode:
    """Run the kit and print what it found; exit code 5 unless every check ran and held, known gaps apart."""
    from lora_core.testing.conformance import conform as run

    report = run(
        backend,
        hub=console.hub,
        policies=policy or None,
        checks=check or None,
        known_gaps=_gaps(known_gap),
        emit=console.emit,
    )
    if as_json:
        console.json(report.to_json())
    else:
        _show(console, report)
    return ExitCode.OK if report.passed else ExitCode.CHECK_FAILED


def _show(console: Console, report: ConformanceReport) -> None:
    rows = [
        [each.id, "known gap" if each.gap else each.outcome.value, f"{each.seconds:.1f}", each.claim]
        for each in report.results
    ]
    console.result(table(["check", "outcome", "seconds", "claim"], rows))
    for each in report.results:
        if each.detail:
            console.result(f"\n{each.id}: {each.detail}" + (f" (known gap: {each.gap})" if each.gap else ""))
    stands = [f"fails {len(report.failures)} of {len(report.results)} checks"] if report.failures else []
    stands += [f"has {len(report.unchecked)} that could not be made here"] if report.unchecked else []
    state = "conforms" if report.passed else " and ".join(stands)
    console.result(f"\n{report.backend} ({report.distribution}) {state}; policies: {', '.join(report.policies)}")


def _gaps(texts: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    wrong = [text for text, (_, equals, _) in zip(texts, pairs, strict=True) if not equals]
    if wrong:
        raise UsageError(f"{wrong[0]!r} is no known gap.", remedy="Write --known-gap ID=REASON.")
    return {name: reason for name, _, reason in pairs}


command = Command(
    "conform",
    callback=conform,
    help="Run the conformance kit against BACKEND, with a tiny random model: exit code 5 unless every check ran and "
    "held.",
    params=[
        click.Argument(["backend"]),
        click.Option(["--policy"], multiple=True, help="Check with this policy only. Repeatable. Default: all."),
        click.Option(["--check"], multiple=True, help="Run this check only. Repeatable. Default: all that apply."),
        click.Option(
            ["--known-gap"],
            multiple=True,
            metavar="ID=REASON",
            help="This check is known to fail; if it passes, that is a failure. Repeatable.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
