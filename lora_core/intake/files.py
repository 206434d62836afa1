"""Regular files of bounded size: no pipe, device or directory in their place, and no link where none may be."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from lora_core.errors import LoraCoreError
from lora_core.intake.limits import RAISE, raised

_COPY = "Put a copy of the file in its place."
_KINDS = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def open_regular(path: Path, error: type[LoraCoreError], *, links: bool = True) -> BinaryIO:
    """Open a regular file for reading, without waiting for anybody; with `links` False `path` itself may be no link.

    Raises `error` if it is anything else, `OSError` as `open` does.
    """
    status = path.stat() if links else path.lstat()
    if (kind := irregular(status)) is not None:
        raise error(f"This is {kind}, not a file.", where=str(path), remedy=_COPY)
    # A pipe that took its place since would be waited for without O_NONBLOCK; on a regular file that has no effect.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error("This is no regular file any more.", where=str(path), remedy=_COPY)
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path, limit: int, error: type[LoraCoreError], *, links: bool = True) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes; raises as `open_regular` does."""
    allowed = raised(limit)
    with open_regular(path, error, links=links) as file:
        data = file.read(allowed + 1) if os.fstat(file.fileno()).st_size <= allowed else None
    if data is None or len(data) > allowed:
        what = f"The file is larger than the {allowed} bytes that are read of one."
        raise error(what, where=str(path), remedy=RAISE)
    return data


def irregular(status: os.stat_result) -> str | None:
    """Return what a file is if it is no regular one ("a pipe")."""
    if stat.S_ISREG(status.st_mode):
        return None
    return next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), "a special file")
