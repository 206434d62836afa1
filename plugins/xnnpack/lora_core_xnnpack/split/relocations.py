"""The relocation table of a program with one method: where its LoRA tensors' keys stand, and how to write it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import BundleError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import TABLE
from lora_core_xnnpack import slot_tensors
from lora_core_xnnpack.files.program_front import ProgramTail
from lora_core_xnnpack.files.program_root import SegmentOffsets
from lora_core_xnnpack.slot_tensors import TensorRelocation, recorded_mark, schema_version, whole


@attrs.frozen(kw_only=True)
class DelegateReference:
    """A delegate of an execution plan: `position` in the tail of the uint32 that names its `segment`."""

    position: int
    segment: int


@attrs.frozen(kw_only=True)
class TemplateSegment:
    """A segment of the template file: `offset` from the file's start and `size`, in bytes."""

    offset: int
    size: int


@attrs.frozen(kw_only=True)
class RelocationTable:
    """All that linking needs beside the template's bytes.

    `tensors` stand in the order in which ExecuTorch stores them; their sites count payloads by segment.
    `foundation_keys` are the content keys of the foundation whose size equals that of a LoRA matrix: an adapter's
    tensor under such a key is already stored there. `mark` is what programs carry of the foundation
    (`files/marks.py`).
    """

    tail_offset: int
    tail_size: int
    tail: ProgramTail
    segments: tuple[TemplateSegment, ...]
    delegates: tuple[DelegateReference, ...]
    tensors: tuple[TensorRelocation, ...]
    foundation_keys: tuple[str, ...]
    mark: str | None = None

    def to_json(self, foundation: str | None = None) -> str:
        """Return the table as JSON text with the same bytes for the same table.

        `foundation` is the fingerprint of the foundation that the template goes with; one without weights has none.
        """
        document = {**attrs.asdict(self), "tensors": [tensor.to_json() for tensor in self.tensors]}
        if self.mark is None:
            del document["mark"]
        if foundation is not None:
            document["foundation"] = foundation
        tail = document["tail"]
        del tail["data"]
        tail["file_identifier"] = self.tail.file_identifier.decode("ascii")
        document["schema_version"] = schema_version(self.tensors)
        return json.dumps(document, separators=(",", ":"), sort_keys=True) + "\n"


@attrs.frozen(kw_only=True)
class SplitTemplate:
    """A template opened for linking: the program file's bytes and its relocation table."""

    program: bytes
    table: RelocationTable

    @classmethod
    def read(cls, program: Path, table: Path, foundation: str | None = None) -> SplitTemplate:
        """Read both files; raises `BundleError` naming the one that is damaged, or made for another `foundation`."""
        data = read_regular(program, TABLE, BundleError, links=False)
        return cls(program=data, table=read_table(table, data, foundation))

    @property
    def kept(self) -> tuple[int, ...]:
        """The segments that no delegate refers to: in every program of the template they are the first, in order."""
        delegated = {each.segment for each in self.table.delegates}
        return tuple(index for index in range(len(self.table.segments)) if index not in delegated)

    def segment(self, index: int) -> bytes:
        """Return the bytes of one segment."""
        span = self.table.segments[index]
        return self.program[span.offset : span.offset + span.size]


def _offsets(document: dict[str, Any]) -> SegmentOffsets:
    return SegmentOffsets(segment=document["segment"], offsets=tuple(document["offsets"]))


def _tail(document: dict[str, Any], data: bytes) -> ProgramTail:
    constant, mutable = document["constant_segment"], document["mutable_segments"]
    first, second, third = document["vectors"]
    return ProgramTail(
        data=data,
        min_align=document["min_align"],
        vectors=(first, second, third),
        vtables=tuple((tuple(key), offset) for key, offset in document["vtables"]),
        version=document["version"],
        header_length=document["header_length"],
        file_identifier=document["file_identifier"].encode("ascii"),
        constant_segment=None if constant is None else _offsets(constant),
        mutable_segments=None if mutable is None else tuple(_offsets(table) for table in mutable),
    )


def read_table(path: Path, program: bytes, foundation: str | None = None) -> RelocationTable:
    """Read the relocation table at `path` for the template `program`.

    Raises `BundleError` naming the file if it is of another schema, not a table for this program, or of a template for
    another `foundation` (None: it need not say).
    """
    return slot_tensors.read_table(path, lambda document: _table(document, program), foundation=foundation)


def _table(document: dict[str, Any], program: bytes) -> RelocationTable:
    start, size = whole(document["tail_offset"]), whole(document["tail_size"])
    table = RelocationTable(
        tail_offset=start,
        tail_size=size,
        tail=_tail(document["tail"], program[start : start + size]),
        segments=tuple(
            TemplateSegment(offset=whole(each["offset"]), size=whole(each["size"])) for each in document["segments"]
        ),
        delegates=tuple(
            DelegateReference(position=whole(each["position"]), segment=whole(each["segment"]))
            for each in document["delegates"]
        ),
        tensors=tuple(TensorRelocation.from_json(tensor) for tensor in document["tensors"]),
        foundation_keys=tuple(document["foundation_keys"]),
        mark=recorded_mark(document),
    )
    if any(segment.offset + segment.size > len(program) for segment in table.segments):
        raise ValueError("a segment ends behind the end of the template")
    delegated = {each.segment for each in table.delegates}
    for tensor, site in ((each, site) for each in table.tensors for site in each.sites):
        if site.offset + tensor.length > table.segments[site.payload].size:
            raise ValueError("a key ends behind the end of its payload")
        if tensor.inside is (site.payload in delegated):
            raise ValueError("a tensor stands where none of its kind does")
    return table
