"""Silence around tools that print: coremltools' progress bars, ExecuTorch's and torchao's warnings and log lines."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what foreign code prints, logs below errors, or warns of during the block from the user's terminal."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    sink = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def coremltools() -> Any:
    """Import coremltools, which warns about the versions of its neighbours while it is imported."""
    with quiet():
        import coremltools

    return coremltools
