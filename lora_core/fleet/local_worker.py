"""A process of `lora_core.fleet.local`: `python -m lora_core.fleet.local_worker`.

It reads the work and what is given to it from standard input, then tasks, one pickle each, and writes an answer to each
to standard output. Its input ends when whoever started it does, however that was killed, and so does it.
"""

from __future__ import annotations

import os
import pickle
import sys

from lora_core.fleet.local import answered


def main() -> None:
    """Answer every task that comes in."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints must not come between answers
    work, given = pickle.load(sys.stdin.buffer)
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answered(work, given, task), answers)
        answers.flush()


if __name__ == "__main__":
    main()
