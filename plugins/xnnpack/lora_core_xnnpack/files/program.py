"""A program of several methods taken apart, and put together with other methods."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import BundleError
from lora_core_xnnpack.files.data_file import DataBlob
from lora_core_xnnpack.files.named_blobs import Buffer, field, number, tables, text
from lora_core_xnnpack.files.program_front import ProgramTail, SegmentOffsets, assemble
from lora_core_xnnpack.files.repacking import PlanSource
from lora_core_xnnpack.files.schema import PLAN, REFERENCE, REFERENCE_INDEX
from lora_core_xnnpack.files.tables import read_table
from lora_core_xnnpack.files.writer import Writer

_HEADER_LENGTH = 32  # `_ExtendedHeader` rounded up to the largest alignment that program.fbs asks for, 16
_PLANS, _SEGMENTS, _CONSTANT_SEGMENT, _MUTABLE_SEGMENTS, _NAMED = 1, 4, 5, 6, 7


@attrs.frozen(kw_only=True)
class PackedMethod:
    """A method: its plan and its delegates' payloads, in the plan's order."""

    source: PlanSource
    payloads: tuple[Buffer, ...]

    @property
    def computes(self) -> bool:
        """False for metadata (`get_max_seq_len`), which has neither delegates nor instructions."""
        return bool(self.payloads) or any(table.kind == "Instruction" for table in self.source.table.walk())


@attrs.frozen(kw_only=True)
class ProgramParts:
    """A program taken apart.

    `methods` are in the program's order, `named` is its named data by key. `constants` are the segments that belong to
    no delegate and no name, which come first; `constant_segment` and `mutable_segments` refer to them.
    """

    methods: Mapping[str, PackedMethod]
    named: Mapping[str, Buffer]
    constants: tuple[Buffer, ...]
    version: int
    file_identifier: bytes
    constant_segment: SegmentOffsets | None
    mutable_segments: tuple[SegmentOffsets, ...] | None

    @classmethod
    def read(cls, path: Path) -> ProgramParts:
        """Map the program at `path` and take it apart; raises `BundleError` if it is not a whole program."""
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return cls.parse(data)
        except (OSError, struct.error, ValueError, IndexError, KeyError) as error:
            raise BundleError(
                f"{path.name} is not a whole ExecuTorch program: {error}.",
                where=str(path),
                remedy="Export the bundle again, or restore the file from a copy.",
            ) from error

    @classmethod
    def parse(cls, data: Buffer) -> ProgramParts:
        """Take the program file `data` apart; raises `ValueError`, `IndexError`, `KeyError` or `struct.error`."""
        if bytes(data[4:6]) != b"ET" or bytes(data[8:12]) != b"eh00":
            raise ValueError("it has no ExecuTorch header")
        root, base = struct.unpack_from("<I", data)[0], struct.unpack_from("<Q", data, 24)[0]
        spans = [(base + number(data, at, 0, "<Q"), number(data, at, 1, "<Q")) for at in tables(data, root, _SEGMENTS)]
        if any(start + size > len(data) for start, size in spans):
            raise ValueError("a segment ends behind the end of the file")
        segments = [memoryview(data)[start : start + size] for start, size in spans]
        constant = next(_referred(data, root, _CONSTANT_SEGMENT), None)
        mutable = [_offsets(data, at) for at in tables(data, root, _MUTABLE_SEGMENTS)]
        owned = {offsets.segment for offsets in (*mutable, *([] if constant is None else [_offsets(data, constant)]))}
        return cls(
            methods={method.source.name: method for method in _methods(data, root, segments)},
            named={text(data, at, 0): segments[number(data, at, 1, "<I")] for at in tables(data, root, _NAMED)},
            constants=tuple(segments[index] for index in sorted(owned)),
            version=number(data, root, 0, "<I"),
            file_identifier=bytes(data[4:8]),
            constant_segment=None if constant is None else _offsets(data, constant),
            mutable_segments=tuple(mutable) if field(data, root, _MUTABLE_SEGMENTS) else None,
        )

    def assemble(self, methods: Mapping[str, PackedMethod], named: Iterable[DataBlob]) -> list[Buffer]:
        """Return a program file with `methods`, this program's metadata and constants, and `named` as its named data.

        As ExecuTorch does: methods in the order of their names, metadata behind them, equal payloads stored once.
        """
        writer = Writer()
        segments = list(self.constants)
        placed: dict[bytes, int] = {}
        plans = []
        for name in sorted(methods):
            for payload in methods[name].payloads:
                if bytes(payload) not in placed:
                    placed[bytes(payload)] = len(segments)
                    segments.append(payload)
            indices = [placed[bytes(payload)] for payload in methods[name].payloads]
            plans.append(methods[name].source.pack(writer, name, indices))
        plans += [each.source.pack(writer, name, ()) for name, each in self.methods.items() if not each.computes]
        names = []
        for blob in named:
            names.append((blob.key, len(segments)))
            segments.append(blob.data)
        return assemble(self._tail(writer, plans), segments, names)

    def _tail(self, writer: Writer, plans: Sequence[int]) -> ProgramTail:
        vectors = (writer.offsets(plans), writer.offsets(()), writer.offsets(()))
        return ProgramTail(
            data=writer.data(),
            min_align=writer.min_align,
            vectors=vectors,
            vtables=tuple(writer.vtables.items()),
            version=self.version,
            header_length=_HEADER_LENGTH,
            file_identifier=self.file_identifier,
            constant_segment=self.constant_segment,
            mutable_segments=self.mutable_segments,
        )


def _methods(data: Buffer, root: int, segments: Sequence[Buffer]) -> Iterable[PackedMethod]:
    for at in tables(data, root, _PLANS):
        plan = read_table(data, at, PLAN)
        references: list[Any] = [table.fields for table in plan.walk() if table.kind == REFERENCE]
        indices = [int.from_bytes(fields[REFERENCE_INDEX] or b"", "little") for fields in references]
        yield PackedMethod(source=PlanSource(plan), payloads=tuple(segments[index] for index in indices))


def _referred(data: Buffer, table: int, index: int) -> Iterator[int]:
    """Yield the position of the table that a field refers to, if it refers to one."""
    at = field(data, table, index)
    if at:
        yield at + int(struct.unpack_from("<I", data, at)[0])


def _offsets(data: Buffer, table: int) -> SegmentOffsets:
    at = next(_referred(data, table, 1), None)
    offsets = struct.unpack_from(f"<{struct.unpack_from('<I', data, at)[0]}Q", data, at + 4) if at else ()
    return SegmentOffsets(segment=number(data, table, 0, "<I"), offsets=offsets)
