"""Exchanging two directories in one step."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

from lora_core.bundle.lock import locked_if_free
from lora_core.bundle.paths import LOCK, MANIFEST, STATE

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NOT_OFFERED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def exchange(new: Path, old: Path) -> None:
    """Let the directories `new` and `old` change names, in one step where the system can (Linux: renameat2).

    Elsewhere `old` is missing for the time between two renames. It is then at `aside(old)`, and `restore` puts it back
    if the process was killed just there. The caller holds the lock of `old`.
    """
    if _exchange_at_once(new, old):
        return
    kept = old.rename(aside(old))
    try:
        new.rename(old)
    except OSError:
        kept.rename(old)
        raise
    kept.rename(new)


def aside(target: Path) -> Path:
    """Return where `target` is kept between two renames."""
    return target.parent / f".{target.name}.replaced"


def restore(target: Path) -> None:
    """Undo an exchange that was killed between its renames, or remove what one left that was killed after them.

    Whoever exchanges holds the lock of the old directory, so nothing is taken from a living process, and what has no
    lock file is none of ours.
    """
    kept = aside(target)
    if not _is_kept(kept):
        return
    with locked_if_free(kept) as lock:
        if lock is None:
            return
        if os.path.lexists(target):
            _delete(kept)
        else:
            kept.rename(target)
            lock.directory = target


def _is_kept(kept: Path) -> bool:
    """Say whether `kept` is a bundle with its lock, or what a deletion of one left; a user's own directory is not."""
    try:
        if kept.is_symlink() or not stat.S_ISREG(os.lstat(kept / STATE / LOCK).st_mode):
            return False
        return (kept / MANIFEST).is_file() or [each.name for each in kept.iterdir()] == [STATE]
    except OSError:
        return False


def _delete(kept: Path) -> None:
    """Delete `kept` so that it can be told for what it is until the end."""
    for entry in sorted(kept.iterdir(), key=lambda entry: entry.name == MANIFEST):
        if entry.name == STATE:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    shutil.rmtree(kept)


def _exchange_at_once(new: Path, old: Path) -> bool:
    import ctypes  # only replacing a bundle needs it

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NOT_OFFERED:
        return False
    raise OSError(code, os.strerror(code), str(old))
