"""`lora-core conform`: run the conformance kit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_core.cli.command import Command
from lora_core.cli.table import table
from lora_core.errors import ExitCode

if TYPE_CHECKING:
    from lora_core.cli.console import Console


def conform(
    console: Console, *, backend: str, policy: tuple[str, ...], check: tuple[str, ...], as_json: bool
) -> ExitCode:
    """Run the kit and print what it found; a failed check is exit code 5."""
    from lora_core.testing.conformance import conform as run

    report = run(backend, hub=console.hub, policies=policy or None, checks=check or None, emit=console.emit)
    if as_json:
        console.json(report.as_dict())
    else:
        rows = [[each.name, each.outcome.value, f"{each.seconds:.1f}", each.claim] for each in report.results]
        console.result(table(["check", "outcome", "seconds", "claim"], rows))
        for each in report.results:
            if each.detail:
                console.result(f"\n{each.name}: {each.detail}")
        state = "conforms" if report.passed else f"fails {len(report.failures)} of {len(report.results)} checks"
        console.result(f"\n{report.backend} ({report.distribution}) {state}; policies: {', '.join(report.policies)}")
    return ExitCode.OK if report.passed else ExitCode.CHECK_FAILED


command = Command(
    "conform",
    callback=conform,
    help="Run the conformance kit against BACKEND, with a tiny random model: a failed check is exit code 5.",
    params=[
        click.Argument(["backend"]),
        click.Option(["--policy"], multiple=True, help="Check with this policy only. Repeatable. Default: all."),
        click.Option(["--check"], multiple=True, help="Run this check only. Repeatable. Default: all that apply."),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
)
