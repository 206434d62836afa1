"""Interrupted at any line, a change is whole or was not made, nothing is left of it, and it is known which of both.

`EVERY_LINE=1 pytest tests/bundle/test_interruptions.py` interrupts at every line and not at every third.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lora_core.bundle import creation, durable, exchange, lock, transaction
from lora_core.events import BundleWritten, Event

WRITERS = {each.__file__ for each in (transaction, creation, lock, durable, exchange)}
STEP = 1 if os.environ.get("EVERY_LINE") else 3
OLD = {"base.bin": b"base", "adapters/gone.bin": b"gone", "adapters/kept.bin": b"kept"}
NEW = {"base.bin": b"base", "adapters/kept.bin": b"kept", "adapters/come.bin": b"come"}
Act = Callable[[Path, Callable[[Event], None]], None]


class Line:
    """Raises `KeyboardInterrupt` before the line of `WRITERS` with this number, counted as they are executed."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.came: str | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """Count lines of frames that are executed."""
        if frame.f_code.co_filename not in WRITERS:
            return None
        if event == "line":
            self.left -= 1
            if self.left < 0 and self.came is None:
                self.came = f"{frame.f_code.co_filename}:{frame.f_lineno}"
                raise KeyboardInterrupt
        return self

    @contextmanager
    def traced(self) -> Iterator[None]:
        """Interrupt a block."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


def changing(bundles: Any) -> Act:
    def act(path: Path, emit: Callable[[Event], None]) -> None:
        with transaction.change(path, emit) as begun:
            bundles.write(begun.out, {"adapters/come.bin": b"come"})
            begun.commit(bundles.manifest(NEW))

    return act


def creating(bundles: Any) -> Act:
    def act(path: Path, emit: Callable[[Event], None]) -> None:
        with creation.creation(path, emit, force=True) as made:
            bundles.write(made.out, NEW)
            made.commit(bundles.manifest(NEW))

    return act


@pytest.mark.parametrize("make", [changing, creating], ids=["change", "replace"])
def test_interrupted_before_any_line_a_bundle_is_old_or_new_and_nothing_is_left(
    bundles: Any, memory_path: Path, make: Callable[[Any], Act]
) -> None:
    act, number, wrong, states = make(bundles), 0, [], set()
    pristine = bundles.create(memory_path / "pristine" / "b", OLD).path.parent
    while True:
        path, events = Path(shutil.copytree(pristine, memory_path / f"{number}")) / "b", list[Event]()
        line = Line(number)
        try:
            with line.traced():
                act(path, events.append)
        except KeyboardInterrupt:
            assert line.came
        if line.came is None:
            break
        left = {name for name in bundles.everything(path.parent) if Path(name).parts[0] != "b" or ".lora-core" in name}
        found = bundles.read(path)
        states.add(found == NEW)
        told = any(isinstance(event, BundleWritten) for event in events)
        if left or found not in (OLD, NEW) or told != (found == NEW):
            wrong.append((line.came, sorted(left), "new" if found == NEW else "old", told))
        number += STEP
    assert wrong == []
    assert states == {False, True}
    assert number > 100
