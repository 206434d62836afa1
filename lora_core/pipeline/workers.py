"""Linking in several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.format import AdapterFormat
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.errors import LoraCoreError
from lora_core.executor import ExecutorSettings, LostTask
from lora_core.pipeline.batches import BatchResult, LinkBatch
from lora_core.pipeline.given import format_entries
from lora_core.plugin import loading
from lora_core.processes.local import LocalExecutor

if TYPE_CHECKING:
    from lora_core.hub import PluginHub
    from lora_core.plugin.registry import Entry


@attrs.frozen(kw_only=True)
class LinkWork:
    """What a process links into, and the descriptors from which it imports backend and formats itself."""

    bundle: Bundle
    backend: Entry[Any]
    formats: tuple[Entry[Any], ...]

    def link(self, batch: LinkBatch) -> BatchResult:
        """Link a batch."""
        try:
            backend, formats = self._made
        except LoraCoreError as error:
            return BatchResult(error=error)
        return batch.link(self.bundle, backend, self.backend.value, formats)

    @cached_property
    def _made(self) -> tuple[Backend, list[AdapterFormat]]:
        backend: Backend = _made(self.backend, Backend, "backend")
        return backend, [_made(entry, AdapterFormat, "adapter format") for entry in self.formats]


def link_in_processes(batches: Sequence[LinkBatch], bundle: Bundle, hub: PluginHub, jobs: int) -> Iterator[BatchResult]:
    """Link batches in `jobs` processes; results come in the order of the batches. Raises `LoraCoreError`."""
    work = LinkWork(bundle=bundle, backend=hub.backends.entry(bundle.manifest.backend), formats=format_entries(hub))
    early: dict[int, BatchResult] = {}
    expected = 0
    for index, result in LocalExecutor().run(LinkWork.link, work, batches, ExecutorSettings(processes=jobs)):
        if isinstance(result, LostTask):
            what = f"A process that linked adapters ended unexpectedly: {result.why}."
            raise LoraCoreError(what, remedy="Link in one process (--jobs 1) to see why.")
        early[index] = result
        while expected in early:
            yield early.pop(expected)
            expected += 1


def _made(entry: Entry[Any], interface: type[Any], what: str) -> Any:
    return loading.make(entry.value.target, interface, f"{what} {entry.name!r}", entry.origin)
