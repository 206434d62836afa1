"""Linking in batches: thousands of adapters in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.identity import other_base
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.slots.choice import plan_for
from lora_core.backend import Artifacts, Backend
from lora_core.bundle.bundle import Bundle
from lora_core.errors import AdapterError, LoraCoreError, Problem
from lora_core.events import Emit, Event, Warned, ignore
from lora_core.pipeline.recording import blame, on_plans, recorded, unrecorded

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


def _refuse_misfits(bundle: Bundle, adapters: Sequence[Adapter]) -> None:
    plans = bundle.manifest.plans
    largest = max(plans, key=lambda plan: plan.size)
    problems: list[Problem] = []
    for adapter in adapters:
        if plan_for(plans, adapter) is None:
            problems += largest.misfits(adapter)
    if problems:
        raise AdapterError(problems)
