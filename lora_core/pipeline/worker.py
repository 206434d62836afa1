"""The process that links batches for `lora_core.pipeline.workers`: `python -m lora_core.pipeline.worker`.

It reads one pickled `Work` from standard input and writes one pickled `BatchResult` for each batch to standard output.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading


def main() -> None:
    """Link every batch of the work that comes in; end at once when whoever gave it is gone."""
    results = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints must not come between results
    work = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    for result in work.run():
        pickle.dump(result, results)
        results.flush()


def _die_with_parent() -> None:
    """Standard input ends when the parent does, however it was killed; nobody would clean up after us then."""
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
