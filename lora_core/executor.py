"""The interface of executors: who does one kind of work for many tasks, in other processes or on other machines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs

from lora_core.errors import UsageError

ATTEMPTS = 3
"""How often a task is tried whose process dies."""


@attrs.frozen(kw_only=True)
class ExecutorSettings:
    """What the user says of an executor: how many `processes` work at a time (None: as many as there are cores), and
    the `address` of a cluster (None: this machine).
    """

    processes: int | None = None
    address: str | None = None


@attrs.frozen(kw_only=True)
class LostTask:
    """In place of a result: the task's process ended before it, every time that it was tried."""

    why: str


class TaskExecutor(ABC):
    """One way to run tasks. Instances are made without arguments, cheaply; heavy modules are imported in bodies."""

    def check(self, settings: ExecutorSettings) -> None:
        """Raise `UsageError` for settings that make no sense here, `UnsupportedError` where this machine cannot."""
        if settings.address is not None:
            raise UsageError("This executor has no address: it works on this machine.", remedy="Leave --address out.")

    def shares_files(self, settings: ExecutorSettings) -> bool:  # noqa: ARG002 - for others
        """Say whether tasks see the files of this machine under the same paths."""
        return True

    @abstractmethod
    def run(
        self,
        work: Callable[[Any, Any], Any],
        given: Any,
        tasks: Sequence[Any],
        settings: ExecutorSettings,
    ) -> Iterator[tuple[int, Any]]:
        """Call `work(given, task)` for each of `tasks`, and yield the task's index with the result as each is done.

        `work` is a function that a fresh process can import; all else can be pickled. A task whose process dies is
        tried again, `ATTEMPTS` times in all; one that never ends well gives a `LostTask`. Processes end with the
        iteration, however it ends. What `work` raises is raised.
        """
