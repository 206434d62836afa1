"""Work for executors whose processes, or whose callers, are killed; a process of their own has to find it by name."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from pathlib import Path


def double(given: Path, task: int) -> int:
    """Return twice the task; the process is killed the first time that a task of 5 is tried, and always by 13."""
    mark = given / "tried"
    if task == 13 or (task == 5 and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 99:
        raise ValueError("no such task")
    return 2 * task


def hold(given: Path, task: int) -> None:
    """Hold a lock on the file `task` for as long as this process lives."""
    with (given / str(task)).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        (given / f"{task}.held").touch()
        time.sleep(300)
