"""Bounds for a stranger's template: so much time of the processor, so much memory more than the process has.

Jinja's sandbox keeps a template from what is outside of it, not from loops in loops or texts that double.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

PATIENCE = 5.0
"""Seconds of this thread's processor time; honest templates take milliseconds."""
MEMORY = 1 << 30
_TEMPLATE = "<template>"  # what jinja calls the file of a template that comes from a string
_BITS = 4096
"""Bits of a power's result."""

Trace = Callable[[FrameType, str, Any], Any]


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox without powers that take for ever: they are one step, which `bounded` cannot end."""

    intercepted_binops = frozenset(["**"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ARG002 - jinja's signature
        """Return the power of two numbers; raises `OverflowError` for one with too many digits."""
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _BITS:
            raise OverflowError("a power is too large")
        return left**right


@contextmanager
def bounded() -> Iterator[None]:
    """Run a block in which templates are compiled and rendered; one that takes too much raises.

    `TimeoutError` after `PATIENCE`, told at the next line of the template; `MemoryError` (where the system has limits
    of the address space) for more than `MEMORY` bytes beyond what the process had.
    """
    deadline, before = time.thread_time() + PATIENCE, sys.gettrace()

    def in_template(_frame: FrameType, _event: str, _argument: Any) -> Trace:
        if time.thread_time() > deadline:
            raise TimeoutError(f"it takes longer than {PATIENCE:.0f} seconds")
        return in_template

    def anywhere(frame: FrameType, event: str, argument: Any) -> Trace | None:
        return in_template(frame, event, argument) if frame.f_code.co_filename == _TEMPLATE else None

    sys.settrace(anywhere)
    try:
        with _less_memory():
            yield
    except MemoryError as error:
        raise MemoryError(f"it takes more than {MEMORY >> 20} MiB") from error
    finally:
        sys.settrace(before)


@contextmanager
def _less_memory() -> Iterator[None]:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except (ImportError, OSError):  # no such limits here: time alone is bounded
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    allowed = pages * resource.getpagesize() + MEMORY
    if soft != resource.RLIM_INFINITY and soft < allowed:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
