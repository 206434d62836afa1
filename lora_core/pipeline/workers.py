"""Linking in several processes.

Processes of our own and not multiprocessing: its forks would keep the bundle's lock after this process was killed, and
its fresh processes run the caller's script again if that has no `__main__` guard.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import attrs

from lora_core.adapters.format import AdapterFormat
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.errors import LoraCoreError
from lora_core.pipeline.batches import BatchResult, LinkBatch
from lora_core.pipeline.given import format_entries
from lora_core.plugin import loading

if TYPE_CHECKING:
    from lora_core.hub import PluginHub
    from lora_core.plugin.registry import Entry


@attrs.frozen(kw_only=True)
class Work:
    """What one process links: batches, and the descriptors from which it imports backend and formats itself."""

    bundle: Bundle
    backend: Entry[Any]
    formats: tuple[Entry[Any], ...]
    batches: tuple[LinkBatch, ...]

    def run(self) -> Iterator[BatchResult]:
        """Link the batches one after the other."""
        try:
            backend: Backend = _made(self.backend, Backend, "backend")
            formats: list[AdapterFormat] = [_made(entry, AdapterFormat, "adapter format") for entry in self.formats]
        except LoraCoreError as error:
            yield from (BatchResult(error=error) for _ in self.batches)
            return
        yield from (batch.link(self.bundle, backend, self.backend.value, formats) for batch in self.batches)


def link_in_processes(batches: Sequence[LinkBatch], bundle: Bundle, hub: PluginHub, jobs: int) -> Iterator[BatchResult]:
    """Link batches in `jobs` processes; results come in the order of the batches. Raises `LoraCoreError`."""
    backend = hub.backends.entry(bundle.manifest.backend)
    formats = format_entries(hub)
    with ExitStack() as stack:
        workers = []
        for number in range(jobs):
            mine = tuple(batches[number::jobs])
            worker = stack.enter_context(python_process("lora_core.pipeline.worker"))
            stack.callback(worker.kill)
            with _blamed(BrokenPipeError):
                pickle.dump(Work(bundle=bundle, backend=backend, formats=formats, batches=mine), _pipe(worker.stdin))
                _pipe(worker.stdin).flush()
            workers.append(worker)
        for number in range(len(batches)):
            with _blamed(EOFError, pickle.UnpicklingError):
                result = cast(BatchResult, pickle.load(_pipe(workers[number % jobs].stdout)))
            yield result


def python_process(module: str) -> subprocess.Popen[bytes]:
    """Start Python on a module of ours, which it finds where this process does, with pipes to and from it."""
    # -P: without it Python puts the working directory first, and a folder of adapters may hold an attrs.py.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", module]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


@contextmanager
def _blamed(*signs: type[Exception]) -> Iterator[None]:
    """Turn the `signs` of a process that is gone into an error of ours."""
    try:
        yield
    except signs as error:
        raise LoraCoreError(
            "A process that linked adapters ended unexpectedly.", remedy="Link in one process (--jobs 1) to see why."
        ) from error


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the process was started with pipes"
    return stream


def _made(entry: Entry[Any], interface: type[Any], what: str) -> Any:
    return loading.make(entry.value.target, interface, f"{what} {entry.name!r}", entry.origin)
