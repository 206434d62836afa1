"""The entry point of the command line: what can go wrong before there is anything to report it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from lora_core.cli.ending import Terminated, starved


def main(argv: Sequence[str] | None = None) -> int:
    """Run `lora-core` with `argv` (default: the process's own) and return the exit code."""
    _open_streams()
    before = _on_termination()
    try:
        from lora_core.cli.running import run  # imports take a while, in which a user may interrupt

        return run(argv)
    except KeyboardInterrupt as interruption:
        _say("interrupted; nothing was changed")
        return 143 if isinstance(interruption, Terminated) else 130
    except (MemoryError, ImportError) as error:
        if isinstance(error, ImportError) and not starved(error):
            raise
        _say("error: This machine has not enough memory for it. Close other programs.")
        return 4
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


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


def _on_termination() -> Any:
    """Let SIGTERM end a command as an interruption does; None if that cannot be arranged here."""

    def terminate(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    try:
        return signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # another thread than the first
        return None


if __name__ == "__main__":
    sys.exit(main())
