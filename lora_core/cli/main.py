"""The entry point of the command line: what can go wrong before there is anything to report it."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from lora_core.cli.ending import Ender, Terminated, asked_to_end, settle, starved


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lora-core` with `argv` (default: the process's own) and return the exit code."""
    if argv is None:
        atexit.register(_ignore_signals)  # the first that is registered runs last
    code = _run(argv)
    if argv is None:
        _keep(code)
    return code


def _run(argv: Sequence[str] | None) -> int:
    _open_streams()
    before: dict[signal.Signals, Any] = {}
    if argv is None:  # the process is this command's own
        gc.disable()
    try:
        _take_signals(before)
        from lora_core.cli.running import run  # imports take a while, in which a user may interrupt

        code = run(argv)
        settle()
        return code
    except BaseException as error:
        interruption = asked_to_end() or error
        if isinstance(interruption, KeyboardInterrupt):
            _say("interrupted; nothing was changed")
            return 143 if isinstance(interruption, Terminated) else 130
        if not starved(error):
            raise
        _say("error: This machine has not enough memory for it. Close other programs.")
        return 4
    finally:
        for number, handler in before.items() if argv is not None else ():  # else `_keep` puts others in their place
            signal.signal(number, handler)


def _keep(code: int) -> None:
    """Let `code` be the process's exit code whatever signal comes from now on: what it tells is done."""

    def leave(*_: object) -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, RuntimeError):  # being flushed already, closed, or to nobody
                stream.flush()
        os._exit(code)

    with suppress(ValueError):  # another thread than the first
        signal.signal(signal.SIGTERM, leave)
        if isinstance(signal.getsignal(signal.SIGINT), Ender):
            signal.signal(signal.SIGINT, leave)


def _ignore_signals() -> None:
    """Have no signal end the interpreter while it takes itself apart, when handlers written in Python are gone."""
    with suppress(ValueError):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _open_streams() -> None:
    """Open what a caller closed: a file that is opened later would otherwise get the number of a standard stream."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def _take_signals(before: dict[signal.Signals, Any]) -> None:
    """Let SIGTERM end a command as an interruption does, and have both remembered; `before` gets what there was.

    An interruption that whoever started the process had it ignore stays ignored.
    """
    with suppress(ValueError):  # another thread than the first
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, Ender(Terminated))
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, Ender(KeyboardInterrupt))


if __name__ == "__main__":
    sys.exit(main())
