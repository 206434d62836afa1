"""Errors and exit codes."""

from __future__ import annotations

from collections.abc import Iterator

from lora_core import errors
from lora_core.errors import ExitCode, LoraCoreError, Problem
from refdocs.markdown import code, doc, first_line, page, table
from refdocs.records import section


def errors_page() -> str:
    """Return the page of errors and exit codes."""
    classes = list(_tree(LoraCoreError))
    rows = [
        [code(each.__name__), code(each.__bases__[0].__name__), str(int(each.exit_code)), first_line(doc(each))]
        for each in classes
    ]
    raised = {each.exit_code for each in classes}
    unraised = [code(str(int(each))) for each in ExitCode if each not in raised]
    return page(
        "Errors and exit codes",
        doc(errors),
        f"No error class has the codes {', '.join(unraised)}: the command line returns them itself. "
        "Where several kinds of problems are reported together, the code is that of the first.",
        "## Errors",
        table(["class", "is a", "exit code", "when"], rows),
        f"## `LoraCoreError`\n\n{doc(LoraCoreError)}",
        section(Problem),
    )


def _tree(cls: type[LoraCoreError]) -> Iterator[type[LoraCoreError]]:
    yield cls
    for each in cls.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _tree(each)
