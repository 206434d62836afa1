"""Turn what ended a command into a message on stderr and the documented exit code; never a traceback."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from lora_core.cli.console import Console
from lora_core.cli.ending import Terminated, asked_to_end, starved
from lora_core.errors import ExitCode, LoraCoreError, Problem, StorageError, UnsupportedError
from lora_core.plugin.registry import Origin


def report(error: BaseException, console: Console) -> ExitCode:
    """Tell the user about `error` and return the exit code of the process."""
    error = asked_to_end() or error
    if isinstance(error, KeyboardInterrupt):
        done = "what it had written before stays" if console.changed else "nothing was changed"
        terminated = isinstance(error, Terminated)
        console.say(f"{'terminated' if terminated else 'interrupted'}; {done}")
        console.noise.discard()
        return ExitCode.TERMINATED if terminated else ExitCode.INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # The reader of stdout left; it has what it wanted.
        console.noise.discard()
        return ExitCode.OK
    known = classified(error)
    if known is None:
        return _defect(error, console)
    if known.exit_code is ExitCode.PLUGIN and error.__cause__ is not None:
        _keep_trace(error, console)
    console.say(message(known.problems))
    _name_log(console)
    return known.exit_code


def classified(error: BaseException) -> LoraCoreError | None:
    """Return the error of our tree that `error` is or stands for, or None if it is a defect."""
    if isinstance(error, LoraCoreError):
        return error
    if isinstance(error, OSError):
        what = error.strerror or str(error) or type(error).__name__
        remedy = "Free some space and run the command again." if error.errno == errno.ENOSPC else ""
        return StorageError(what, where=" -> ".join(_paths(error)), remedy=remedy)
    if starved(error):
        return UnsupportedError(
            "This machine has not enough memory for it", remedy="Close other programs or use a smaller model."
        )
    return None


def message(problems: Sequence[Problem]) -> str:
    """Return the lines that tell of all `problems`."""
    if len(problems) == 1:
        return f"error: {problems[0]}"
    return "\n".join([f"error: {len(problems)} problems:", *(f"  - {problem}" for problem in problems)])


def _defect(error: BaseException, console: Console) -> ExitCode:
    _keep_trace(error, console)
    text = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
    culprit = _culprit(error, console)
    who = f"{culprit.distribution} (plugin {culprit.plugin!r})" if culprit is not None else "lora-core"
    console.say(f"error: This is a defect in {who}: {told}. Please report it with the command and the log.")
    _name_log(console)
    return ExitCode.DEFECT if culprit is None else ExitCode.PLUGIN


def _culprit(error: BaseException, console: Console) -> Origin | None:
    """Return the plugin in whose code `error` arose or passed last, if any."""
    import traceback

    packages = {plugin.origin.module.partition(".")[0]: plugin.origin for plugin in console.hub.plugins}
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        origin = packages.get(str(frame.f_globals.get("__name__")).partition(".")[0])
        if origin is not None:
            return None if origin.core else origin
    return None


def _keep_trace(error: BaseException, console: Console) -> None:
    import traceback

    console.noise.write("".join(traceback.format_exception(error)), worth_keeping=True)


def _name_log(console: Console) -> None:
    log = console.noise.kept()
    if log is not None:
        console.say(f"log: {log}")
    else:
        console.noise.discard()


def _paths(error: OSError) -> list[str]:
    return [str(Path(name)) for name in (error.filename, error.filename2) if isinstance(name, str | Path)]
