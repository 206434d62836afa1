"""Progress as lines and as a live display."""

from __future__ import annotations

import io

import pytest

from lora_core.cli.live import LiveProgress
from lora_core.cli.progress import PlainProgress, QuietProgress, seconds
from lora_core.events import Estimated, Noted, StageAdvanced, StageFinished, StageStarted, Warned


class Clock:
    """Time that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def plain(lines: list[str], clock: Clock) -> PlainProgress:
    progress = PlainProgress(lines.append, clock=clock)
    # The tests tick themselves.
    progress.close()
    return progress


def test_short_stage_is_one_line(plain: PlainProgress, lines: list[str], clock: Clock) -> None:
    plain.hear(StageStarted(stage="read"))
    clock.now += 0.5
    plain.tick()
    plain.hear(StageFinished(stage="read", seconds=0.5))
    assert lines == ["[    0.5 s] read: done in 0.50 s\n"]


def test_longer_stage_is_announced_once_with_its_estimate(plain: PlainProgress, lines: list[str], clock: Clock) -> None:
    plain.hear(StageStarted(stage="lower", expected_seconds=125))
    for _ in range(3):
        clock.now += 1
        plain.tick()
    assert lines == ["[    1.0 s] lower ... (about 2 min 05 s)\n"]


def test_long_stage_gives_a_sign_of_life_every_fifteen_seconds(
    plain: PlainProgress, lines: list[str], clock: Clock
) -> None:
    plain.hear(StageStarted(stage="lower"))
    plain.hear(StageAdvanced(stage="lower", done=3, total=9))
    for _ in range(40):
        clock.now += 1
        plain.tick()
    assert lines[1:] == [
        "[   16.0 s] lower: still working after 16.0 s, 3 of 9\n",
        "[   31.0 s] lower: still working after 31.0 s, 3 of 9\n",
    ]


def test_a_stage_that_counts_bytes_tells_sizes(plain: PlainProgress, lines: list[str], clock: Clock) -> None:
    plain.hear(StageStarted(stage="write"))
    plain.hear(StageAdvanced(stage="write", done=1_200_000_000, total=4_930_000_000, unit="bytes"))
    for _ in range(16):
        clock.now += 1
        plain.tick()
    assert lines[-1].endswith("write: still working after 16.0 s, 1.2 GB of 4.9 GB\n")


@pytest.mark.parametrize(
    ("memory", "text"),
    [(None, "Writes about 2.5 MB\n"), (10**9, "Writes about 2.5 MB, holding at most about 1.0 GB in memory\n")],
)
def test_an_estimate_is_a_line(plain: PlainProgress, lines: list[str], memory: int | None, text: str) -> None:
    plain.hear(Estimated(written=2_500_000, memory=memory))
    assert lines == [f"[    0.0 s] {text}"]


def test_innermost_stage_is_the_one_at_work(plain: PlainProgress, lines: list[str], clock: Clock) -> None:
    plain.hear(StageStarted(stage="export"))
    plain.hear(StageStarted(stage="lower"))
    clock.now += 1
    plain.tick()
    clock.now += 15
    plain.tick()
    assert "lower: still working" in lines[-1]
    plain.hear(StageFinished(stage="lower", seconds=16))
    clock.now += 15
    plain.tick()
    assert "export: still working" in lines[-1]


def test_notes_and_warnings_are_lines(plain: PlainProgress, lines: list[str]) -> None:
    plain.hear(Noted(message="reused"))
    plain.hear(Warned(message="careful"))
    assert lines == ["[    0.0 s] reused\n", "[    0.0 s] warning: careful\n"]


def test_quiet_leaves_warnings_only(lines: list[str]) -> None:
    quiet = QuietProgress(lines.append)
    for event in (StageStarted(stage="x"), Noted(message="x"), Warned(message="careful")):
        quiet.hear(event)
    assert lines == ["warning: careful\n"]


def test_live_display_shows_running_stages_and_leaves_finished_ones() -> None:
    stream = io.StringIO()
    live = LiveProgress(stream, patience=60)
    live.hear(StageStarted(stage="lower"))
    live.hear(StageAdvanced(stage="lower", done=1_500_000, total=2_000_000, unit="bytes"))
    live.show_now()
    live.hear(Estimated(written=2_000_000))
    live.hear(Warned(message="careful [bold]"))
    live.hear(StageFinished(stage="lower", seconds=2.0))
    shown = stream.getvalue()
    assert "warning: careful [bold]" in shown
    assert "1.5 MB of 2.0 MB" in shown
    assert "Writes about 2.0 MB" in shown
    assert "lower: 2.0 s" in shown
    # The last thing a display does is to give the cursor back.
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_live_display_leaves_the_terminal_to_results() -> None:
    stream = io.StringIO()
    live = LiveProgress(stream, patience=60)
    live.hear(StageStarted(stage="lower"))
    live.show_now()
    live.pause()
    before = stream.getvalue()
    live.hear(StageAdvanced(stage="lower", done=1, total=2))
    assert stream.getvalue() == before
    live.close()


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.05, "0.05 s"), (12.34, "12.3 s"), (59.96, "60.0 s"), (125, "2 min 05 s"), (3600, "60 min 00 s")],
)
def test_durations_are_for_people(value: float, text: str) -> None:
    assert seconds(value) == text
