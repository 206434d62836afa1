"""Linking in batches: thousands of adapters in bounded memory, in one process or in several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.identity import other_base
from lora_core.adapters.plans import plan_for
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.references import read_adapters
from lora_core.backend import Artifacts, Backend
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, LoraCoreError, Problem
from lora_core.events import Emit, Event, Warned, ignore
from lora_core.pipeline.recording import blame, on_plans, recorded, unrecorded

if TYPE_CHECKING:
    from lora_core.hub import PluginHub
    from lora_core.registry import Entry

BATCH = 32
"""Adapters that are open at a time; headers only, their tensors are read one by one."""
WORTH_A_PROCESS = 64
"""A process starts in the time in which this many adapters (of rank 8 on two kinds of layers) are half linked."""


@attrs.frozen(kw_only=True)
class Linked:
    """What one batch gave: its artifacts, or the error that stopped it, and what it has to tell."""

    artifacts: Artifacts | None = None
    error: LoraCoreError | None = None
    events: tuple[Event, ...] = ()


@attrs.frozen(kw_only=True)
class Batch:
    """References to link together into the empty directory `out`."""

    references: tuple[AdapterReference, ...]
    out: Path

    def link(self, bundle: Bundle, backend: Backend, formats: Sequence[AdapterFormat], emit: Emit = ignore) -> Linked:
        """Read the references and link them. Never raises an error of ours: others may have problems to report too."""
        told: list[Event] = []
        try:
            adapters = read_adapters(self.references, bundle.manifest.base, formats)
            _refuse_misfits(bundle, adapters)
            for adapter in adapters:
                if (contradiction := other_base(adapter, bundle.manifest.base)) is not None:
                    told.append(Warned(message=contradiction))
            self.out.mkdir()
            written = backend.link(bundle, adapters, self.out, emit)
            blame(bundle.manifest.backend, unrecorded(written, adapters))
            complete = attrs.evolve(
                written,
                artifacts=recorded(written.artifacts, self.out, bundle.manifest.backend),
                adapters=on_plans(written.adapters, adapters, bundle.manifest.plans),
            )
        except LoraCoreError as error:
            return Linked(error=error, events=tuple(told))
        return Linked(artifacts=complete, events=tuple(told))


def split(references: Sequence[AdapterReference], size: int, parent: Path) -> list[Batch]:
    """Return batches of about `size`; a composite is in the same one as the references it names."""
    named = {part.of for reference in references for part in reference.parts if not part.is_directory}
    together = [reference for reference in references if reference.parts or reference.name in named]
    alone = [reference for reference in references if not (reference.parts or reference.name in named)]
    groups = [together] if together else []
    groups += [alone[start : start + size] for start in range(0, len(alone), size)]
    return [Batch(references=tuple(group), out=parent / f"batch-{index}") for index, group in enumerate(groups)]


def link_here(
    batches: Sequence[Batch], bundle: Bundle, backend: Backend, formats: Sequence[AdapterFormat], emit: Emit
) -> Iterator[Linked]:
    """Link one batch after the other in this process."""
    return (batch.link(bundle, backend, formats, emit) for batch in batches)


def link_in_processes(batches: Sequence[Batch], bundle: Bundle, hub: PluginHub, jobs: int) -> Iterator[Linked]:
    """Link batches in `jobs` processes of their own; results come in the order of the batches.

    New processes and not forks: a fork would keep the bundle's lock if this process were killed.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    work = _Work(
        bundle=bundle,
        backend=hub.backends.entry(bundle.manifest.backend),
        formats=tuple(hub.adapter_formats.entry(name) for name in hub.adapter_formats),
    )
    try:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            yield from pool.map(work, batches)
    except BrokenProcessPool as error:
        raise LoraCoreError(
            "A process that linked adapters ended unexpectedly.", remedy="Link in one process (--jobs 1) to see why."
        ) from error


@attrs.frozen(kw_only=True)
class _Work:
    """What a process needs to link: descriptors, from which it imports backend and formats itself."""

    bundle: Bundle
    backend: Entry[Any]
    formats: tuple[Entry[Any], ...]

    def __call__(self, batch: Batch) -> Linked:
        from lora_core import targets

        made: Callable[..., Any] = targets.make
        try:
            backend = made(self.backend.value.target, Backend, f"backend {self.backend.name!r}", self.backend.origin)
            formats = [
                made(entry.value.target, AdapterFormat, f"adapter format {entry.name!r}", entry.origin)
                for entry in self.formats
            ]
        except LoraCoreError as error:
            return Linked(error=error)
        return batch.link(self.bundle, backend, formats)


def _refuse_misfits(bundle: Bundle, adapters: Sequence[Any]) -> None:
    plans = bundle.manifest.plans
    largest = max(plans, key=lambda plan: plan.size)
    problems: list[Problem] = []
    for adapter in adapters:
        if plan_for(plans, adapter) is None:
            problems += largest.misfits(adapter)
    if problems:
        raise AdapterError(problems)
