"""Work whose processes are killed; a process of its own has to find it by name."""

from __future__ import annotations

import os
import signal
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
