"""What a block writes to standard output and standard error, from Python or from native code."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress

import attrs


@attrs.define
class Noise:
    """What was written: `stdout` and `stderr`. Python's warnings are not counted, they belong to the user's filters."""

    stdout: str = ""
    stderr: str = ""


@contextmanager
def listening(noise: Noise) -> Iterator[None]:
    """Add to `noise` what the block writes, in place of writing it."""
    with ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")) for _ in "12"]
        _flush()
        for descriptor, file in zip((1, 2), files, strict=True):
            kept = os.dup(descriptor)
            os.dup2(file.fileno(), descriptor)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, descriptor)
        # Where sys.stdout is not the descriptor (pytest), print goes another way.
        with redirect_stdout(files[0]), redirect_stderr(files[1]), _unshown_warnings():
            try:
                yield
            finally:
                _flush()
                for file in files:
                    file.flush()
                    file.seek(0)
                noise.stdout += files[0].read()
                noise.stderr += files[1].read()


@contextmanager
def _unshown_warnings() -> Iterator[None]:
    show = warnings.showwarning
    warnings.showwarning = lambda *_args, **_named: None
    try:
        yield
    finally:
        warnings.showwarning = show


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
