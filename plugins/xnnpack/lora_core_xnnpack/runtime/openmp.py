"""OpenMP beside the runtime's own threads: one thread, unless somebody decided otherwise.

`llama::custom_sdpa` multiplies matrices with torch's BLAS, whose OpenMP threads wait for each other by spinning, beside
the runtime's own pool: a prompt of 128 tokens then took 18 times the processor time that it takes with one thread. The
number is read from the environment when torch's libraries are loaded; `torch.set_num_threads` later is not the same: it
made prompts on quantized bases several times slower (torch 2.13.0, ExecuTorch 1.5.1).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

VARIABLE = "OMP_NUM_THREADS"


@contextlib.contextmanager
def one_openmp_thread() -> Iterator[None]:
    """Let libraries that are loaded inside of the block start OpenMP with one thread.

    Nothing is done where the environment says how many, or torch is loaded already: that is the host's decision.
    """
    if VARIABLE in os.environ or "torch" in sys.modules:
        yield
        return
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        del os.environ[VARIABLE]  # processes that this one starts decide for themselves


def openmp_threads() -> int:
    """Return how many threads torch's OpenMP has; torch must be loaded."""
    import torch

    return int(torch.get_num_threads())
