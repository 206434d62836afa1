"""The kind of click command that all of ours are: every problem at once, and a console around the work."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import iter_params_for_processing

from lora_core.cli import failure
from lora_core.cli.console import Console, Verbosity
from lora_core.cli.ending import hold, one_thread_for_blas, release, require_memory, settle
from lora_core.errors import ExitCode, Problem, UsageError
from lora_core.hub import PluginHub


class Command(click.Command):
    """Calls its callback as `callback(console, ...)`; the exit code is what it returns (None: 0) or what it raises.

    Has `--verbose`, `--quiet` and `--log-file` in addition to its own parameters. `multiplies` says whether it
    multiplies large matrices with numpy, so that threads are worth their start.
    """

    def __init__(self, name: str | None = None, *, multiplies: bool = True, **attributes: Any) -> None:
        # **attributes are click's own, handed on as they are.
        attributes["params"] = [*(attributes.get("params") or ()), *_common()]
        super().__init__(name, **attributes)
        self.multiplies = multiplies

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `args`; a usage error carries all problems, where click stops at the first one."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            if "--help" in given:
                click.echo(ctx.get_help())
                ctx.exit()
            problems = self.unknown_options(ctx, given) or self.refused_values(ctx, given)
            raise UsageError(problems or [Problem(what=error.format_message())]) from error

    def unknown_options(self, ctx: click.Context, args: Sequence[str]) -> list[Problem]:
        """Return a problem for each option in `args` that this command does not have."""
        rest = list(args)
        problems: list[Problem] = []
        while True:
            try:
                self.make_parser(ctx).parse_args(args=list(rest))
            except click.NoSuchOption as error:
                problems.append(self.unknown_option(ctx, error))
                if not _drop(rest, error.option_name):
                    return problems
            except click.UsageError:
                return problems
            else:
                return problems

    def unknown_option(self, ctx: click.Context, error: click.NoSuchOption) -> Problem:  # noqa: ARG002 for subclasses
        """Return the problem of one unknown option."""
        return Problem(what=error.message.rstrip("."), remedy=_guesses(error.possibilities))

    def refused_values(self, ctx: click.Context, args: Sequence[str]) -> list[Problem]:
        """Return a problem for each parameter whose value is refused or missing, and for arguments too many."""
        try:
            values, extra, order = self.make_parser(ctx).parse_args(args=list(args))
        except click.UsageError as error:
            return [Problem(what=error.format_message())]
        problems: list[Problem] = []
        for param in iter_params_for_processing(order, self.get_params(ctx)):
            try:
                _, extra = param.handle_parse_result(ctx, values, extra)
            except click.UsageError as error:
                problems.append(Problem(what=error.format_message()))
        if extra:
            problems.append(Problem(what=f"Unexpected arguments: {' '.join(map(str, extra))}"))
        return problems

    def invoke(self, ctx: click.Context) -> ExitCode:
        """Run the callback in a console and return the exit code."""
        values = dict(ctx.params)
        verbosity = Verbosity(verbose=values.pop("verbose"), quiet=values.pop("quiet"), log_file=values.pop("log_file"))
        assert self.callback is not None
        _collect_garbage()
        hold()
        with Console(verbosity, ctx.find_object(PluginHub)) as console:
            try:
                release()
                if not self.multiplies and "numpy" not in sys.modules:
                    one_thread_for_blas()
                require_memory()
                code = self.callback(console, **values) or ExitCode.OK
                settle()
            except BaseException as error:  # noqa: BLE001 reported; there is nobody above
                settle()
                return failure.report(error, console)
            console.noise.discard()
            return ExitCode(code)


def _collect_garbage() -> None:
    """Look for garbage from here on, if `main` put it off: what is imported is none, and looking through all of it each
    time that it has grown by a quarter takes a tenth of a short command.
    """
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


def _common() -> list[click.Parameter]:
    return [
        click.Option(["--verbose"], is_flag=True, help="Show what ExecuTorch and other libraries print."),
        click.Option(["--quiet"], is_flag=True, help="No progress; only warnings and errors on stderr."),
        click.Option(
            ["--log-file"],
            type=click.Path(dir_okay=False, path_type=Path),
            help="Keep what libraries print in this file. Default: a temporary file, kept if the command fails.",
        ),
    ]


def _drop(args: list[str], option: str) -> bool:
    """Remove `option` and what looks like its value; False if it is not there as such."""
    for index, word in enumerate(args):
        if word == option or word.startswith(f"{option}="):
            takes_next = word == option and index + 1 < len(args) and not args[index + 1].startswith("-")
            del args[index : index + 2 if takes_next else index + 1]
            return True
    return False


def _guesses(possibilities: Sequence[str] | None) -> str:
    return f"Did you mean {' or '.join(possibilities)}?" if possibilities else ""
