"""One run of the command line, from its words to its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from lora_core.cli import failure
from lora_core.cli.console import Console, Verbosity
from lora_core.cli.ending import settle
from lora_core.cli.group import CommandGroup
from lora_core.errors import ExitCode, UsageError
from lora_core.hub import PluginHub


def run(argv: Sequence[str] | None = None) -> int:
    """Run `lora-core` with `argv` (default: the process's own) and return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        hub = PluginHub()
        code = CommandGroup(hub).main(words, prog_name="lora-core", standalone_mode=False, obj=hub)
        return int(code or ExitCode.OK)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except BrokenPipeError:
        # The reader of `--help` is gone; without this the interpreter complains about its own stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.OK
    except BaseException as error:  # noqa: BLE001 reported with its exit code
        settle()
        with Console(Verbosity()) as console:
            return failure.report(_understood(error), console)


def _understood(error: BaseException) -> BaseException:
    """Return what ended the parsing of the command line as an error of ours."""
    if isinstance(error, click.Abort):
        return KeyboardInterrupt()
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "lora-core"
        return UsageError(error.format_message(), remedy=f"See `{command} --help`.")
    return error
