"""Keep what libraries write to stdout and stderr, from Python or from C++, out of the way and in a log file."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import TextIO

from lora_core.errors import StorageError


class Noise:
    """While open, file descriptors 1 and 2 lead to the log; `stdout` and `stderr` are the real ones.

    With `verbose`, noise goes to the real stderr instead, and a log file that was asked for gets it too.
    The default log lies in the temporary directory and goes away with `discard`; it exists only while it is needed.
    """

    def __init__(self, log_file: Path | None = None, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self.path: Path | None = log_file
        self._temporary = log_file is None
        self._follower: Follower | None = None
        self._own = 0

    def __enter__(self) -> Noise:
        target = self._open_log()
        _flush()
        self.stdout = _duplicate(1)
        self.stderr = _duplicate(2)
        os.dup2(target, 1)
        os.dup2(target, 2)
        if target > 2:
            os.close(target)
        if self.verbose and self.path is not None:
            self._follower = Follower(self.path, self.stderr)
            self._follower.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _flush()
        if self._follower is not None:
            self._follower.stop()
        os.dup2(self.stdout.fileno(), 1)
        os.dup2(self.stderr.fileno(), 2)
        for stream in (self.stdout, self.stderr):
            stream.close()

    def write(self, text: str, *, worth_keeping: bool = False) -> None:
        """Add `text` to the log; a log that cannot be written never stops the command.

        A default log is kept for the noise of others and for what is `worth_keeping`.
        """
        if self.path is None:
            return
        try:
            with self.path.open("ab") as log:
                written = log.write(text.encode("utf-8", "replace"))
        except OSError:
            self.path = None
        else:
            self._own += 0 if worth_keeping else written

    def kept(self) -> Path | None:
        """Return the log if it holds anything worth keeping."""
        _flush()
        try:
            return self.path if self.path is not None and self.path.stat().st_size > self._own else None
        except OSError:
            return None

    def discard(self) -> None:
        """Remove the log, unless it was asked for by name."""
        if self._temporary and self.path is not None:
            self.path.unlink(missing_ok=True)

    def _open_log(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        if self.path is not None:
            try:
                return os.open(self.path, flags | os.O_TRUNC, 0o644)
            except OSError as error:
                raise StorageError(f"The log file cannot be written: {error.strerror}", where=str(self.path)) from error
        if self.verbose:
            return os.dup(2)
        # Not tempfile: its imports cost more than everything else here.
        self.path = Path(os.environ.get("TMPDIR", "/tmp")) / f"lora-core-{os.getpid()}-{os.urandom(4).hex()}.log"
        try:
            return os.open(self.path, flags | os.O_EXCL, 0o600)
        except OSError:
            self.path = None
            return os.open(os.devnull, os.O_WRONLY)


class Follower:
    """Copies what is appended to a file to a stream, from a thread, until it is stopped."""

    def __init__(self, path: Path, stream: TextIO, interval: float = 0.1) -> None:
        import threading

        self._path = path
        self._stream = stream
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="log follower", daemon=True)

    def start(self) -> None:
        """Begin to copy."""
        self._thread.start()

    def stop(self) -> None:
        """Copy what is left and end."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        with self._path.open("rb") as log:
            last = False
            while True:
                data = log.read()
                if data:
                    self._stream.write(data.decode("utf-8", "replace"))
                    self._stream.flush()
                if last:
                    return
                last = self._stop.wait(self._interval)


def _duplicate(descriptor: int) -> TextIO:
    return os.fdopen(os.dup(descriptor), "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # The reader of a pipe may be gone, or the stream closed; neither is a reason to fail.
            continue
