"""Files that stay whatever happens to the command afterwards, told as such."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_core.events import Emit, FileWritten


@contextmanager
def telling_of(target: Path, emit: Emit) -> Iterator[None]:
    """Emit `FileWritten` if the block puts another file or directory under the name `target`, also if an interruption
    follows at once.
    """
    before = _identity(target)
    try:
        yield
        emit(FileWritten(path=target))
    except BaseException:
        if _identity(target) not in (before, None):
            emit(FileWritten(path=target))
        raise


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns
