"""The split layout's lowered programs without the base's weights: taken from one base, filled with those of another."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.pte import Buffer
from lora_core_xnnpack.cache.origins import BaseTensor, digests_of, is_content_key, key_offsets, trace_foundation
from lora_core_xnnpack.files.named_blobs import NamedBlob
from lora_core_xnnpack.files.program_root import ProgramRoot
from lora_core_xnnpack.slot_tensors import KeySite
from lora_core_xnnpack.split.relocations import RelocationTable, SplitTemplate, TemplateSegment
from lora_core_xnnpack.split.rewriting import rewrite

if TYPE_CHECKING:
    import torch

PlannedMemory = Mapping[str, Mapping[str, int]]
"""Bytes of memory that programs plan, by program and method."""


@attrs.frozen(kw_only=True)
class WeightlessProgram:
    """A program (or template) and where the keys of base tensors stand in it, by their index in the foundation."""

    template: SplitTemplate
    sites: tuple[tuple[int, tuple[KeySite, ...]], ...]


@attrs.frozen(kw_only=True)
class WeightlessSet:
    """The base program and the templates, the foundation's blobs in stored order, and the memory that programs plan."""

    foundation: tuple[BaseTensor, ...]
    programs: tuple[WeightlessProgram, ...]
    planned_memory: PlannedMemory

    @classmethod
    def strip(
        cls,
        module: torch.nn.Module,
        programs: Sequence[SplitTemplate],
        planned_memory: PlannedMemory,
        data: Buffer,
        blobs: Sequence[NamedBlob],
    ) -> Self:
        """Take `programs` and the foundation file, whose bytes are `data`, apart from the weights in `module`.

        Raises `DependsOnWeightsError`.
        """
        foundation = trace_foundation(module, blobs, digests_of(data, blobs))
        keys = [blob.key for blob in blobs]
        stripped = tuple(WeightlessProgram(template=program, sites=sites_of(program, keys)) for program in programs)
        return cls(foundation=foundation, programs=stripped, planned_memory=planned_memory)

    @classmethod
    def places(cls, plans: Sequence[SlotPlan]) -> Sequence[Sequence[SlotPlan]]:
        """Return the plans of what is kept for itself: none for the base program, and one for each template."""
        return ((), *((plan,) for plan in plans))

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the set whose base program is the first of `parts`, and whose templates are the others."""
        names = ("base", *(f"template/{number}" for number in range(len(parts) - 1)))
        return cls(
            foundation=parts[0].foundation,
            programs=tuple(program for part in parts for program in part.programs),
            planned_memory={
                name: memory for name, part in zip(names, parts, strict=True) for memory in part.planned_memory.values()
            },
        )

    def parts(self) -> Sequence[Self]:
        """Return each program as a set of its own."""
        return [
            attrs.evolve(self, programs=(program,), planned_memory={name: memory})
            for program, (name, memory) in zip(self.programs, self.planned_memory.items(), strict=True)
        ]

    def with_templates(
        self, templates: Sequence[SplitTemplate], planned_memory: PlannedMemory, keys: Sequence[str]
    ) -> Self:
        """Return the set with `templates` too, which name the foundation's blobs by `keys`."""
        stripped = tuple(WeightlessProgram(template=each, sites=sites_of(each, keys)) for each in templates)
        return attrs.evolve(
            self, programs=(*self.programs, *stripped), planned_memory={**self.planned_memory, **planned_memory}
        )

    def fill(self, blobs: Sequence[NamedBlob]) -> list[SplitTemplate]:
        """Return the programs that lowering another base would have given, whose foundation holds `blobs`."""
        return [_fill(program, blobs) for program in self.programs]

    @classmethod
    def from_kept(cls, directory: Path, content: Mapping[str, Any]) -> Self:
        """Read the programs in `directory`; raises as `Keepable.from_kept` says."""
        programs = tuple(
            WeightlessProgram(
                template=SplitTemplate.read(directory / f"{index}.pte", directory / f"{index}.json"),
                sites=tuple((tensor, tuple(KeySite(**site) for site in sites)) for tensor, sites in found),
            )
            for index, found in enumerate(content["programs"])
        )
        foundation = tuple(BaseTensor.from_json(tensor) for tensor in content["foundation"])
        return cls(foundation=foundation, programs=programs, planned_memory=content["planned_memory"])

    def to_kept(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Return two files for each program, and where base tensors come from and their keys stand."""
        files = {}
        for index, program in enumerate(self.programs):
            files[f"{index}.pte"] = program.template.program
            files[f"{index}.json"] = program.template.table.to_json().encode("utf-8")
        content = {
            "foundation": [attrs.asdict(tensor) for tensor in self.foundation],
            "programs": [
                [[tensor, [attrs.asdict(site) for site in sites]] for tensor, sites in program.sites]
                for program in self.programs
            ],
            "planned_memory": {name: dict(methods) for name, methods in self.planned_memory.items()},
        }
        return files, content


def sites_of(program: SplitTemplate, keys: Sequence[str]) -> tuple[tuple[int, tuple[KeySite, ...]], ...]:
    """Return where the content keys among `keys`, the foundation's, stand in a program, by their index."""
    segments = sorted({reference.segment for reference in program.table.delegates})
    payloads = {segment: program.segment(segment) for segment in segments}
    found = []
    for index, key in enumerate(keys):
        sites = tuple(
            KeySite(payload=segment, offset=offset)
            for segment, payload in payloads.items()
            for offset in (key_offsets(payload, key) if is_content_key(key) else ())
        )
        if sites:
            found.append((index, sites))
    return tuple(found)


def _fill(program: WeightlessProgram, blobs: Sequence[NamedBlob]) -> SplitTemplate:
    old = program.template
    rewritten = b"".join(rewrite(old, [(sites, blobs[index].key) for index, sites in program.sites]))
    sizes = {tensor.size for tensor in old.table.tensors}
    keys = tuple(sorted({blob.key for blob in blobs if blob.size in sizes}))
    return SplitTemplate(program=rewritten, table=attrs.evolve(_retabled(old.table, rewritten), foundation_keys=keys))


def _retabled(old: RelocationTable, program: bytes) -> RelocationTable:
    """Return the table of a rewritten program: equal payloads may have come to share a segment."""
    root = ProgramRoot.read(program)
    start = root.header.program_size - old.tail_size
    tail = program[start : root.header.program_size]
    delegates = tuple(
        attrs.evolve(each, segment=struct.unpack_from("<I", tail, each.position)[0]) for each in old.delegates
    )
    moved = {before.segment: after.segment for before, after in zip(old.delegates, delegates, strict=True)}
    return attrs.evolve(
        old,
        tail_offset=start,
        tail=attrs.evolve(old.tail, data=tail),
        segments=tuple(TemplateSegment(offset=offset, size=size) for offset, size in root.spans),
        delegates=delegates,
        tensors=tuple(attrs.evolve(tensor, sites=_moved(tensor.sites, moved)) for tensor in old.tensors),
    )


def _moved(sites: Sequence[KeySite], moved: Mapping[int, int]) -> tuple[KeySite, ...]:
    places = sorted({(moved.get(site.payload, site.payload), site.offset) for site in sites})
    return tuple(KeySite(payload=segment, offset=offset) for segment, offset in places)
