"""Problems of several independent steps, raised together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lora_core.errors import LoraCoreError, Problem


class Complaints:
    """Collects the errors of steps that do not depend on each other, so that none is reported one a run."""

    def __init__(self) -> None:
        self._errors: list[LoraCoreError] = []

    @contextmanager
    def collect(self) -> Iterator[None]:
        """Keep the error of ours that the block raises, and go on after it."""
        try:
            yield
        except LoraCoreError as error:
            self._errors.append(error)

    def add(self, kind: type[LoraCoreError], problems: Sequence[Problem]) -> None:
        """Keep `problems`, if there are any, as one error of class `kind`."""
        if problems:
            self._errors.append(kind(problems))

    def __bool__(self) -> bool:
        return bool(self._errors)

    def raise_any(self) -> None:
        """Raise what was collected as one error of the class of the first; do nothing if there is nothing."""
        if self._errors:
            kind = type(self._errors[0])
            problems = dict.fromkeys(problem for error in self._errors for problem in error.problems)
            raise kind(problems) from (self._errors[0] if len(self._errors) == 1 else None)
