"""What a block writes to standard output and standard error, from Python or from native code."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

import attrs


@attrs.define
class Printed:
    """What was written: `stdout` and `stderr`. Python's warnings are not counted, they belong to the user's filters."""

    stdout: str = ""
    stderr: str = ""


class Listening:
    """While open, what is written goes to `noise` in place of where it was going."""

    def __init__(self, noise: Printed) -> None:
        self._noise = noise
        self._files: list[Any] = []
        self._diverted = ExitStack()

    def __enter__(self) -> Listening:
        # Two files that the descriptors share with Python's own streams.
        self._files = [tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") for _ in "12"]  # noqa: SIM115
        self._divert()
        return self

    def __exit__(self, *exc: object) -> None:
        self._restore()
        texts = []
        for file in self._files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        self._noise.stdout += texts[0]
        self._noise.stderr += texts[1]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the block write where it wants to."""
        self._restore()
        try:
            yield
        finally:
            self._divert()

    def _divert(self) -> None:
        _flush(sys.stdout, sys.stderr)
        for descriptor, file in zip((1, 2), self._files, strict=True):
            kept = os.dup(descriptor)
            os.dup2(file.fileno(), descriptor)
            self._diverted.callback(os.close, kept)
            self._diverted.callback(os.dup2, kept, descriptor)
        # Where sys.stdout does not lead to the descriptor (under pytest), print goes another way.
        self._diverted.enter_context(redirect_stdout(self._files[0]))
        self._diverted.enter_context(redirect_stderr(self._files[1]))
        show = warnings.showwarning
        self._diverted.callback(setattr, warnings, "showwarning", show)
        warnings.showwarning = lambda *_args, **_named: None

    def _restore(self) -> None:
        _flush(*self._files)
        self._diverted.close()


def _flush(*streams: Any) -> None:
    for stream in streams:
        with suppress(OSError, ValueError):
            stream.flush()
