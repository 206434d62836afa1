"""One writer at a time: an exclusive lock on a bundle's directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from lora_core.bundle.paths import LOCK, STATE
from lora_core.bundle.places import require_plain_state
from lora_core.events import Emit, Noted

PATIENCE = 1.0
"""Seconds of waiting after which a listener is told."""


@attrs.define(kw_only=True)
class Lock:
    """A lock that is held. Whoever moves the locked directory says so by setting `directory`."""

    directory: Path
    descriptor: int


@contextmanager
def locked(directory: Path, emit: Emit) -> Iterator[Lock]:
    """Hold the lock of `directory` for a block, waiting for it as long as it takes.

    The system releases the lock when its holder dies. Its file goes with the lock, so that a directory at rest holds
    nothing but the bundle. Raises `OSError` if the directory does not exist or cannot be written.
    """
    descriptor = _acquire(directory, lambda opened: _wait(opened, directory, emit))
    assert descriptor is not None, "waiting never gives up"
    lock = Lock(directory=directory, descriptor=descriptor)
    try:
        yield lock
    finally:
        _release(lock)


@contextmanager
def locked_if_free(directory: Path) -> Iterator[Lock | None]:
    """Hold the lock of `directory` for a block, or yield None at once if another process holds it."""
    descriptor = _acquire(directory, _try)
    lock = None if descriptor is None else Lock(directory=directory, descriptor=descriptor)
    try:
        yield lock
    finally:
        if lock is not None:
            _release(lock)


def _acquire(directory: Path, take: Callable[[int], bool]) -> int | None:
    """Take the lock and return its descriptor, None if `take` gave up.

    A lock file that was removed or moved away while we waited (by the holder before us, or because the whole bundle
    was replaced) guards nothing any more: start again with the one that is there now.
    """
    path = directory / STATE / LOCK
    require_plain_state(directory)
    while True:
        with suppress(FileExistsError):
            path.parent.mkdir()
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except FileNotFoundError:
            if not directory.exists():
                raise
            continue  # the holder before us removed the state directory between our two steps
        kept = False
        try:
            if not take(descriptor):
                return None
            kept = _is_at(path, descriptor)
            if kept:
                return descriptor
        finally:
            if not kept:
                os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(descriptor: int, directory: Path, emit: Emit) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if _try(descriptor):
            return True
        time.sleep(0.002)
    emit(Noted(message=f"Waiting for another process that is changing {str(directory)!r}."))
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return True


def _release(lock: Lock) -> None:
    state = lock.directory / STATE
    # Nothing here may hide an error of the block; a lock file that stays is taken over by the next writer.
    with suppress(OSError):
        if _is_at(state / LOCK, lock.descriptor):
            (state / LOCK).unlink()
    with suppress(OSError):
        state.rmdir()
    os.close(lock.descriptor)
