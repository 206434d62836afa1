"""Where a command writes: results on stdout, progress and errors on stderr, everything else into the log."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.cli.noise import Noise
from lora_core.cli.progress import PlainProgress, Progress, QuietProgress
from lora_core.events import BundleWritten, Event, FileWritten, Noted, StageFinished, StageStarted, Warned
from lora_core.intake.text import shown

if TYPE_CHECKING:
    from lora_core.hub import PluginHub


@attrs.frozen(kw_only=True)
class Verbosity:
    """The options that every command has."""

    verbose: bool = False
    quiet: bool = False
    log_file: Path | None = None


class Console:
    """The surroundings of one command, from its start to its end.

    `closed` turns true when the reader of stdout is gone: what follows is dropped, the command goes on to its verdict.
    `changed` turns true when a bundle or a file was written: an interruption after that no longer undoes it.
    """

    def __init__(self, verbosity: Verbosity, hub: PluginHub | None = None) -> None:
        """Surround a command with `verbosity` and the plugins of `hub` (default: discovered when first needed)."""
        self._hub = hub
        self.noise = Noise(verbosity.log_file, verbose=verbosity.verbose)
        self.closed = False
        self.changed = False
        self._verbosity = verbosity

    def __enter__(self) -> Console:
        self.noise.__enter__()
        self._progress = self._make_progress()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
        self.noise.__exit__(kind, error, trace)

    @property
    def hub(self) -> PluginHub:
        """The plugins of this run."""
        if self._hub is None:
            from lora_core.hub import PluginHub

            self._hub = PluginHub()
        return self._hub

    def emit(self, event: Event) -> None:
        """Render an event, keep it in the log, and let plugins hear it."""
        self.changed = self.changed or isinstance(event, BundleWritten | FileWritten)
        self.noise.write(_logged(event))
        self._progress.hear(event)
        self.hub.tell(event)

    def result(self, text: str, *, end: str = "\n") -> None:
        """Write a result to stdout."""
        self._progress.pause()
        if self.closed:
            return
        try:
            self.noise.stdout.write(shown(text) + end)
            self.noise.stdout.flush()
        except BrokenPipeError:
            self.closed = True
            # What the stream still buffers has to go somewhere when it is closed.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.noise.stdout.fileno())
            os.close(nowhere)

    def json(self, value: Any) -> None:
        """Write `value` to stdout as JSON."""
        import json

        self.result(json.dumps(value, indent=2, ensure_ascii=False))

    def note(self, text: str) -> None:
        """Write a line to stderr that `--quiet` leaves out."""
        if not self._verbosity.quiet:
            self.say(text)

    def say(self, text: str) -> None:
        """Write a line to stderr."""
        self._progress.pause()
        self._write_error(f"{text}\n")

    def _write_error(self, text: str) -> None:
        try:
            self.noise.stderr.write(shown(text))
            self.noise.stderr.flush()
        except OSError:
            # Nobody reads progress any more, or its disk is full; results may still be wanted.
            return

    def _make_progress(self) -> Progress:
        if self._verbosity.quiet:
            return QuietProgress(self._write_error)
        # With --verbose the noise of others shares the terminal and would tear a live display.
        if self.noise.stderr.isatty() and not self._verbosity.verbose:
            from lora_core.cli.live import LiveProgress

            return LiveProgress(self.noise.stderr)
        return PlainProgress(self._write_error)


def _logged(event: Event) -> str:
    if isinstance(event, StageStarted):
        return f"lora-core: {event.stage} started\n"
    if isinstance(event, StageFinished):
        return f"lora-core: {event.stage} finished after {event.seconds:.3f} s\n"
    if isinstance(event, Warned | Noted):
        return f"lora-core: {event.message}\n"
    return ""
