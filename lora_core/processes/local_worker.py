"""A process of `lora_core.processes.local`: `python -m lora_core.processes.local_worker`.

It reads the work and what is given to it from standard input, then tasks, one pickle each, and writes an answer to each
to standard output. Its input ends when whoever started it does, however that was killed, and so does it, at once: the
next run may be working where it writes.
"""

from __future__ import annotations

import os
import pickle
import queue
import sys
import threading
import traceback
from typing import Any

from lora_core.processes.local import answered


def main() -> None:
    """Answer every task that comes in."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints must not come between answers
    work, given = pickle.load(sys.stdin.buffer)
    tasks: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(tasks,), daemon=True).start()
    while True:
        pickle.dump(answered(work, given, tasks.get()), answers)
        answers.flush()


def _receive(tasks: queue.SimpleQueue[Any]) -> None:
    """Hand on every task that comes in; end the process when none can come any more, whatever it is doing."""
    try:
        while True:
            tasks.put(pickle.load(sys.stdin.buffer))
    except EOFError:
        os._exit(0)
    except Exception:  # noqa: BLE001 told here, and to whoever waits by the process's end
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    main()
