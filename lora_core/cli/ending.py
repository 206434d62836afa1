"""How the process can end otherwise than by itself."""

from __future__ import annotations

import mmap
import os
import resource
import signal
from types import FrameType

NEEDED = 128 << 20
"""Bytes of address space that numpy takes when it is imported, with one thread."""
_ROOMY = 2 << 30


class Terminated(KeyboardInterrupt):
    """Somebody asked the process to end (SIGTERM); what a command made for itself is removed as on an interruption."""


class Ender:
    """A signal's handler: raises `error` wherever the process is, and remembers that it was asked to end.

    What it raises may come out as another error: a library that is being imported makes an `ImportError` of it.
    """

    def __init__(self, error: type[KeyboardInterrupt]) -> None:
        """Raise `error` when the signal comes."""
        self.error = error
        self.came = False
        self.held = False
        self.late = False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what handlers are given
        """Raise the error, unless it is too late or not yet time for it."""
        if self.late:
            return
        self.came = True
        if not self.held:
            raise self.error


def hold() -> None:
    """Put signals off until `release`: what a command makes for itself is being made, and nobody would remove it."""
    for ender in _enders():
        ender.held = True


def release() -> None:
    """Raise what was put off, and from now on at once."""
    for ender in _enders():
        ender.held = False
    error = asked_to_end()
    if error is not None:
        raise error


def settle() -> None:
    """Have signals that come from now on change nothing: how the command ended is decided, and being told."""
    for ender in _enders():
        ender.late = True


def asked_to_end() -> KeyboardInterrupt | None:
    """Return what was raised by a signal since the handlers of this command were set, None if none came."""
    return next((each.error() for each in _enders() if each.came), None)


def _enders() -> list[Ender]:
    handlers = (signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT))
    return [each for each in handlers if isinstance(each, Ender)]


def starved(error: BaseException) -> bool:
    """Say whether a library could not be loaded, or a thread not be started, for want of memory."""
    told = str(error)
    if isinstance(error, ImportError):
        return any(said in told for said in ("failed to map segment", "annot allocate memory"))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't start new thread" in told)


def one_thread_for_blas() -> None:
    """Have OpenBLAS, which comes with numpy, start no threads, unless whoever started the process set their number.

    It starts them when numpy is imported and ends them with the process, which takes 0.1 s on two processors.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def require_memory() -> None:
    """Raise `MemoryError` where a library would end the process without a word instead.

    OpenBLAS, which comes with numpy, calls `exit(1)` if it gets no memory for itself and each of its threads, and
    sends the process SIGINT if it gets none for a thread's stack. So where memory is limited it has one thread, and
    what it takes is asked for before.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < _ROOMY:
        one_thread_for_blas()
    try:
        mmap.mmap(-1, NEEDED).close()
    except OSError as error:
        raise MemoryError(f"{NEEDED} bytes are needed") from error
