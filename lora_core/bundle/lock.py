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
    """A lock that is held. Whoever moves the locked directory says so by setting `directory`.

    `descriptor` is that of its open file, -1 without one.
    """

    directory: Path
    descriptor: int = -1


@contextmanager
def locked(directory: Path, emit: Emit) -> Iterator[Lock]:
    """Hold the lock of `directory` for a block, waiting for it as long as it takes.

    The system releases the lock when its holder dies. Its file goes with the lock, so that a directory at rest holds
    nothing but the bundle. Raises `OSError` if the directory does not exist or cannot be written.
    """
    lock = Lock(directory=directory)
    try:
        try:
            held = _acquire(lock, lambda opened: _wait(opened, directory, emit))
            assert held, "waiting never gives up"
            yield lock
        finally:
            _release(lock)
    finally:  # once more, for an interruption in the first
        _release(lock)


@contextmanager
def locked_if_free(directory: Path) -> Iterator[Lock | None]:
    """Hold the lock of `directory` for a block, or yield None at once if another process holds it."""
    lock = Lock(directory=directory)
    try:
        try:
            yield lock if _acquire(lock, _try) else None
        finally:
            _release(lock)
    finally:
        _release(lock)


def _acquire(lock: Lock, take: Callable[[int], bool]) -> bool:
    """Take the lock and say whether it is held; it is not if `take` gave up.

    A lock file that was removed or moved away while we waited (by the holder before us, or because the whole bundle
    was replaced) guards nothing any more: start again with the one that is there now.
    """
    directory = lock.directory
    path = directory / STATE / LOCK
    require_plain_state(directory)
    while True:
        with suppress(FileExistsError):
            path.parent.mkdir()
        try:
            lock.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except FileNotFoundError:
            if not directory.exists():
                raise
            continue  # the holder before us removed the state directory between our two steps
        if not take(lock.descriptor):
            _close(lock)
            return False
        if _is_at(path, lock.descriptor):
            return True
        _close(lock)


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
    """Remove the lock's file, if it is ours to remove, and close it; once that is done, doing it again does nothing."""
    state = lock.directory / STATE
    # Nothing here may hide an error of the block; a lock file that stays is taken over by the next writer.
    with suppress(OSError):
        if lock.descriptor >= 0 and _try(lock.descriptor) and _is_at(state / LOCK, lock.descriptor):
            (state / LOCK).unlink()
    with suppress(OSError):
        state.rmdir()
    _close(lock)


def _close(lock: Lock) -> None:
    descriptor, lock.descriptor = lock.descriptor, -1
    if descriptor >= 0:
        os.close(descriptor)
