"""Progress on a terminal: a live line for each running stage, drawn by rich."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, TextIO

import attrs

from lora_core.cli.progress import estimate, progress, seconds
from lora_core.events import Estimated, Event, Noted, StageAdvanced, StageFinished, StageStarted, Warned
from lora_core.intake.text import shown

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PATIENCE_SECONDS = 0.5


@attrs.define(kw_only=True)
class LiveStage:
    """A running stage and its task on the display, once there is one."""

    total: float | None = None
    done: float = 0
    told: str = ""
    task: TaskID | None = None


class LiveProgress:
    """Draws running stages once something has lasted half a second, so that quick commands never import rich."""

    def __init__(self, stream: TextIO, *, patience: float = PATIENCE_SECONDS) -> None:
        """Draw on `stream`, a terminal, once a stage has lasted `patience` seconds."""
        self._stream = stream
        self._patience = patience
        self._stages: dict[str, LiveStage] = {}
        self._display: RichProgress | None = None
        self._timer: threading.Timer | None = None
        self._lock = threading.RLock()

    def hear(self, event: Event) -> None:
        """Render one event; any thread may call."""
        with self._lock:
            if isinstance(event, StageStarted):
                self._stages[event.stage] = LiveStage()
                self._start_waiting()
            elif isinstance(event, StageAdvanced) and event.stage in self._stages:
                stage = self._stages[event.stage]
                stage.done, stage.total, stage.told = event.done, event.total, progress(event)
            elif isinstance(event, StageFinished):
                self._finish(event)
            elif isinstance(event, Warned):
                self._say(f"warning: {event.message}")
            elif isinstance(event, Noted):
                self._say(event.message)
            elif isinstance(event, Estimated):
                self._say(estimate(event))
            self._draw()

    def show_now(self) -> None:
        """Put the display on the terminal if a stage is waiting for it."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with self._lock:
            if self._timer is None:
                return
            self._timer = None
            told = TextColumn("{task.fields[told]}")
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), told, TimeElapsedColumn())
            # redirect_*: stdout and stderr of this process are the log while the display is up.
            self._display = Progress(
                *columns,
                console=Console(file=self._stream, force_terminal=True),
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._draw()
            self._display.start()

    def pause(self) -> None:
        """Take the display off the terminal; it comes back with the next stage."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._display is not None:
                self._display.stop()
                self._display = None
                for stage in self._stages.values():
                    stage.task = None

    def close(self) -> None:
        """Take the display away for good."""
        self.pause()

    def _finish(self, event: StageFinished) -> None:
        stage = self._stages.pop(event.stage, None)
        if stage is not None and stage.task is not None and self._display is not None:
            self._display.remove_task(stage.task)
        self._say(f"{event.stage}: {seconds(event.seconds)}")
        if not self._stages:
            self.pause()

    def _say(self, text: str) -> None:
        text = shown(text)
        if self._display is not None:
            self._display.console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _start_waiting(self) -> None:
        if self._display is None and self._timer is None:
            self._timer = threading.Timer(self._patience, self.show_now)
            self._timer.daemon = True
            self._timer.start()

    def _draw(self) -> None:
        if self._display is None:
            return
        for name, stage in self._stages.items():
            if stage.task is None:
                stage.task = self._display.add_task(name, total=stage.total, told=stage.told)
            self._display.update(stage.task, completed=stage.done, total=stage.total, told=stage.told)
