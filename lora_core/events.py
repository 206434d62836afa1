"""Past-tense facts that long work reports; the command line turns them into progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import attrs


@attrs.frozen(kw_only=True)
class Event:
    """Base of all events."""


@attrs.frozen(kw_only=True)
class StageStarted(Event):
    """A stage began. `expected_seconds` is an estimate where one is known."""

    stage: str
    expected_seconds: float | None = None


@attrs.frozen(kw_only=True)
class StageAdvanced(Event):
    """`done` of `total` units of the stage are finished; `unit` is `bytes`, or empty for whatever the stage counts."""

    stage: str
    done: int
    total: int
    unit: Literal["", "bytes"] = ""


@attrs.frozen(kw_only=True)
class StageFinished(Event):
    """A stage ended after `seconds`."""

    stage: str
    seconds: float


@attrs.frozen(kw_only=True)
class Estimated(Event):
    """What the work that now begins will take: bytes it writes, and bytes of memory at its peak (None: not known)."""

    written: int
    memory: int | None = None


@attrs.frozen(kw_only=True)
class Warned(Event):
    """Something the user should know that is not an error."""

    message: str


@attrs.frozen(kw_only=True)
class Noted(Event):
    """A fact worth a line of progress (what a plan costs, what was reused)."""

    message: str


@attrs.frozen(kw_only=True)
class BundleWritten(Event):
    """The bundle at `path` was created or changed, and stays so whatever happens to the command after this."""

    path: Path


@attrs.frozen(kw_only=True)
class FileWritten(Event):
    """Something else that was asked for is at `path`, a file or a directory, and stays whatever happens after this."""

    path: Path


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Drop an event: the default listener of the library face."""


@contextmanager
def stage(emit: Emit, name: str, *, expected_seconds: float | None = None) -> Iterator[None]:
    """Report a stage around a block; nothing is reported as finished when the block raises."""
    emit(StageStarted(stage=name, expected_seconds=expected_seconds))
    start = time.monotonic()
    yield
    emit(StageFinished(stage=name, seconds=time.monotonic() - start))


@contextmanager
def advancing(emit: Emit, name: str) -> Iterator[Callable[[int, int], None]]:
    """Report a stage around a block, as `stage` does; the block calls what it is given with (done, total)."""
    with stage(emit, name):
        yield lambda done, total: emit(StageAdvanced(stage=name, done=done, total=total))
