"""The relocation table of a lowered program: where its LoRA tensors' keys stand, and how to write it anew.

ExecuTorch 1.5.1 stores an XNNPACK constant under the SHA-256 hex of its bytes (`backends/xnnpack/operators/
node_visitor.py`); the delegate's payload holds that key as 64 plain characters. Replacing the keys of the template's
placeholder tensors by those of an adapter's tensors gives the program of that adapter.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import attrs

from lora_core.errors import BundleError
from lora_core_xnnpack.program_layout import ProgramTail, SegmentOffsets

SCHEMA_VERSION = 1


@attrs.frozen(kw_only=True)
class KeySite:
    """Where a key stands: `offset` in the payload of segment `segment`."""

    segment: int
    offset: int


@attrs.frozen(kw_only=True)
class TensorRelocation:
    """One LoRA matrix of the template: float32, row-major, `shape` (rank, in_features) for A, (out, rank) for B."""

    module: str
    matrix: Literal["a", "b"]
    shape: tuple[int, int]
    sites: tuple[KeySite, ...]


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

    `tensors` stand in the order in which ExecuTorch stores them. `foundation_keys` are the content keys of the
    foundation whose size equals that of a LoRA matrix: an adapter's tensor under such a key is already stored there.
    """

    tail_offset: int
    tail_size: int
    tail: ProgramTail
    segments: tuple[TemplateSegment, ...]
    delegates: tuple[DelegateReference, ...]
    tensors: tuple[TensorRelocation, ...]
    foundation_keys: tuple[str, ...]

    def to_json(self) -> str:
        """Return the table as JSON text with the same bytes for the same table."""
        document = attrs.asdict(self, recurse=True)
        tail = document["tail"]
        del tail["data"]
        tail["file_identifier"] = self.tail.file_identifier.decode("ascii")
        return json.dumps({"schema_version": SCHEMA_VERSION, **document}, separators=(",", ":"), sort_keys=True) + "\n"


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


def _tensor(document: dict[str, Any]) -> TensorRelocation:
    rows, columns = document["shape"]
    sites = tuple(KeySite(**site) for site in document["sites"])
    return TensorRelocation(**{**document, "shape": (rows, columns), "sites": sites})


def read_table(path: Path, program: bytes) -> RelocationTable:
    """Read the relocation table at `path` for the template `program`.

    Raises `BundleError` naming the file if it is of a newer schema or not a table for this program.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        version = document.pop("schema_version")
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"Relocation table {path.name} has schema {version}; this version reads up to {SCHEMA_VERSION}.",
                where=str(path),
                remedy="Update lora-core-xnnpack.",
            )
        start, size = document["tail_offset"], document["tail_size"]
        table = RelocationTable(
            tail_offset=start,
            tail_size=size,
            tail=_tail(document["tail"], program[start : start + size]),
            segments=tuple(TemplateSegment(**segment) for segment in document["segments"]),
            delegates=tuple(DelegateReference(**reference) for reference in document["delegates"]),
            tensors=tuple(_tensor(tensor) for tensor in document["tensors"]),
            foundation_keys=tuple(document["foundation_keys"]),
        )
        if any(segment.offset + segment.size > len(program) for segment in table.segments):
            raise ValueError("a segment ends behind the end of the template")
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            f"Relocation table {path.name} is damaged: {type(error).__name__}: {error}.",
            where=str(path),
            remedy="Export the bundle again.",
        ) from error
    return table
