"""The error tree: what went wrong, where, and how to mend it.

Every error carries the exit code that the command line documents for it.

| code | meaning |
|---|---|
| 0 | done |
| 1 | a defect in lora-core or a plugin |
| 2 | the command line is wrong |
| 3 | an input (adapter, model, bundle) is wrong |
| 4 | this backend or machine cannot do it |
| 5 | a check failed (`verify`, `conform`, `inspect`) |
| 6 | a plugin is broken or missing |
| 7 | reading or writing failed (disk full, permissions) |
| 130 | interrupted |
| 143 | asked to end (SIGTERM) |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum

import attrs


class ExitCode(IntEnum):
    """Process exit codes, as documented in `docs/reference/errors.md`."""

    OK = 0
    DEFECT = 1
    USAGE = 2
    INPUT = 3
    UNSUPPORTED = 4
    CHECK_FAILED = 5
    PLUGIN = 6
    IO = 7
    INTERRUPTED = 130
    TERMINATED = 143


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong: `what`, `where` it stands, and the `remedy`."""

    what: str
    where: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        text = self.what if self.what.endswith((".", "?", "!")) else f"{self.what}."
        if self.remedy:
            text += f" {self.remedy}"
        if self.where:
            text += f" ({self.where})"
        return text


class LoraCoreError(Exception):
    """Base of all errors that lora-core raises on purpose.

    `problems` holds every problem found, so that none is reported one a run.
    """

    exit_code: ExitCode = ExitCode.DEFECT

    def __init__(self, problems: Problem | str | Iterable[Problem], *, where: str = "", remedy: str = "") -> None:
        if isinstance(problems, str):
            problems = Problem(what=problems, where=where, remedy=remedy)
        self.problems: Sequence[Problem] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(LoraCoreError):
    """The caller asked in a way that cannot be understood (bad option, bad name)."""

    exit_code = ExitCode.USAGE


class InputError(LoraCoreError):
    """An input file or directory is wrong."""

    exit_code = ExitCode.INPUT


class AdapterError(InputError):
    """An adapter cannot be read, is not supported, or does not fit the base."""


class ModelError(InputError):
    """A base model cannot be read or is not supported."""


class UncoveredModelError(ModelError):
    """No family covers this model; a generic source may open it."""


class BundleError(InputError):
    """A bundle is damaged, foreign, of a newer schema, or does not allow the change."""


class UnsupportedError(LoraCoreError):
    """A backend or this machine does not offer what was asked."""

    exit_code = ExitCode.UNSUPPORTED


class PolicyError(UnsupportedError):
    """A quantization policy is unknown or the backend cannot do it."""


class CheckFailedError(LoraCoreError):
    """A verification ran and did not hold."""

    exit_code = ExitCode.CHECK_FAILED


class PluginError(LoraCoreError):
    """A plugin is missing, broken, or raised something of its own."""

    exit_code = ExitCode.PLUGIN


class StorageError(LoraCoreError):
    """Reading or writing failed: disk full, permissions, a file that vanished."""

    exit_code = ExitCode.IO
