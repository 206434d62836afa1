"""Progress as plain lines on stderr, with a sign of life during long stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import attrs

from lora_core.events import Estimated, Event, Noted, StageAdvanced, StageFinished, StageStarted, Warned
from lora_core.units import size

HEARTBEAT_SECONDS = 15.0
ANNOUNCE_SECONDS = 1.0


class Progress(Protocol):
    """Something that renders events."""

    def hear(self, event: Event) -> None:
        """Render one event."""

    def pause(self) -> None:
        """Leave the terminal to a result that is about to be written."""

    def close(self) -> None:
        """Render nothing more."""


@attrs.define(kw_only=True)
class OpenStage:
    """A stage that began and has not finished."""

    name: str
    since: float
    expected: float | None = None
    announced: bool = False
    done: str = ""


class PlainProgress:
    """One line when a stage has lasted a second, one when it ends, and one every 15 seconds in between.

    Stages that end sooner give one line only. Lines begin with the time since the command began.
    """

    def __init__(self, write: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        """Render to `write`, which takes whole lines; `clock` gives seconds."""
        self._write = write
        self._clock = clock
        self._began = clock()
        self._spoke = self._began
        self._stages: list[OpenStage] = []
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def hear(self, event: Event) -> None:
        """Render one event; any thread may call."""
        with self._lock:
            if isinstance(event, StageStarted):
                stage = OpenStage(name=event.stage, since=self._clock(), expected=event.expected_seconds)
                self._stages.append(stage)
                self._start_ticking()
            elif isinstance(event, StageAdvanced):
                for stage in self._stages:
                    if stage.name == event.stage:
                        stage.done = progress(event)
            elif isinstance(event, StageFinished):
                self._stages = [stage for stage in self._stages if stage.name != event.stage]
                self._say(f"{event.stage}: done in {seconds(event.seconds)}")
            elif isinstance(event, Warned):
                self._say(f"warning: {event.message}")
            elif isinstance(event, Noted):
                self._say(event.message)
            elif isinstance(event, Estimated):
                self._say(estimate(event))

    def tick(self) -> None:
        """Announce stages that have lasted a second, and give a sign of life when nothing was said for long."""
        with self._lock:
            now = self._clock()
            for stage in self._stages:
                if not stage.announced and now - stage.since >= ANNOUNCE_SECONDS:
                    stage.announced = True
                    about = f" (about {seconds(stage.expected)})" if stage.expected else ""
                    self._say(f"{stage.name} ...{about}")
            if self._stages and now - self._spoke >= HEARTBEAT_SECONDS:
                stage = self._stages[-1]
                done = f", {stage.done}" if stage.done else ""
                self._say(f"{stage.name}: still working after {seconds(now - stage.since)}{done}")

    def pause(self) -> None:
        """Do nothing: lines never have to be taken back."""

    def close(self) -> None:
        """Stop the ticking."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _say(self, text: str) -> None:
        now = self._clock()
        self._spoke = now
        self._write(f"[{now - self._began:7.1f} s] {text}\n")

    def _start_ticking(self) -> None:
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._ticking, name="progress", daemon=True)
            self._thread.start()

    def _ticking(self) -> None:
        while not self._stop.wait(ANNOUNCE_SECONDS / 2):
            self.tick()


class QuietProgress:
    """Warnings only."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def hear(self, event: Event) -> None:
        """Render a warning, ignore everything else."""
        if isinstance(event, Warned):
            self._write(f"warning: {event.message}\n")

    def pause(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def progress(event: StageAdvanced) -> str:
    """Return how far a stage is: `3 of 9`, `1.2 GB of 4.9 GB`."""
    if event.unit == "bytes":
        return f"{size(event.done)} of {size(event.total)}"
    return f"{event.done} of {event.total}"


def estimate(event: Estimated) -> str:
    """Return what is about to be taken, as a sentence."""
    memory = "" if event.memory is None else f", holding at most about {size(event.memory)} in memory"
    return f"Writes about {size(event.written)}{memory}"


def seconds(value: float) -> str:
    """Return a duration for people: `0.05 s`, `12.3 s`, `2 min 05 s`."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"
