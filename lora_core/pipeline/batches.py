"""Linking in batches: thousands of adapters in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.identity import other_base, refuse_fitted_elsewhere
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.slots.choice import place, place_alone
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.errors import LoraCoreError
from lora_core.events import Emit, Event, Warned, ignore
from lora_core.pipeline.adapter_texts import AdapterTextReader
from lora_core.pipeline.inert import inert
from lora_core.pipeline.kinds import refuse_kinds
from lora_core.pipeline.recording import Changed, blame, unlinked
from lora_core.specs import BackendSpec

BATCH = 32
"""Adapters that are open at a time; headers only, their tensors are read one by one."""
WORTH_A_PROCESS = 64
"""A process starts in the time in which this many adapters (of rank 8 on two kinds of layers) are half linked."""


@attrs.frozen(kw_only=True)
class BatchResult:
    """What one batch gave: what it changes, or the error that stopped it, and what it has to tell."""

    changed: Changed | None = None
    error: LoraCoreError | None = None
    events: tuple[Event, ...] = ()


@attrs.frozen(kw_only=True)
class LinkBatch:
    """References to link together into the empty directory `out`."""

    references: tuple[AdapterReference, ...]
    out: Path

    def link(
        self,
        bundle: Bundle,
        backend: Backend,
        spec: BackendSpec,
        formats: Sequence[AdapterFormat],
        emit: Emit = ignore,
    ) -> BatchResult:
        """Read the references and link them. Never raises an error of ours: others may have problems to report too."""
        told: list[Event] = []
        manifest = bundle.manifest
        try:
            adapters = read_adapters(self.references, manifest.base, formats, reserved=spec.reserved)
            for adapter in adapters:
                if (contradiction := other_base(adapter, manifest.base)) is not None:
                    told.append(Warned(message=contradiction))
            refuse_kinds(spec, adapters)
            refuse_fitted_elsewhere(adapters, manifest.foundation)
            told += inert(adapters)
            placed = place(adapters, manifest.plans) if spec.slot_plans else place_alone(adapters, manifest.base.layers)
            texts = AdapterTextReader(bundle).read(self.references)
            told += texts.told
            shutil.rmtree(self.out, ignore_errors=True)  # left by a process that died
            self.out.mkdir()
            written = backend.link(bundle, placed, self.out, emit)
            blame(manifest.backend, unlinked(written, placed))
            changed = Changed.of(written, placed, self.out, manifest.backend, texts=texts)
        except LoraCoreError as error:
            return BatchResult(error=error, events=tuple(told))
        return BatchResult(changed=changed, events=tuple(told))


def split(references: Sequence[AdapterReference], size: int, parent: Path) -> list[LinkBatch]:
    """Return batches of about `size`; a composite is in the same one as the references it names."""
    named = {part.of for reference in references for part in reference.parts if not part.is_directory}
    together = [reference for reference in references if reference.parts or reference.name in named]
    alone = [reference for reference in references if not (reference.parts or reference.name in named)]
    groups = [together] if together else []
    groups += [alone[start : start + size] for start in range(0, len(alone), size)]
    return [LinkBatch(references=tuple(group), out=parent / f"batch-{index}") for index, group in enumerate(groups)]


def link_here(
    batches: Sequence[LinkBatch],
    bundle: Bundle,
    backend: Backend,
    spec: BackendSpec,
    formats: Sequence[AdapterFormat],
    emit: Emit,
) -> Iterator[BatchResult]:
    """Link one batch after the other in this process."""
    return (batch.link(bundle, backend, spec, formats, emit) for batch in batches)
