"""A program of several methods taken apart, and put together with other methods."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.pte import HEADER_LENGTH, Buffer
from lora_core_xnnpack.files.data_file import DataBlob
from lora_core_xnnpack.files.named_blobs import mapped, tables
from lora_core_xnnpack.files.program_front import ProgramTail, assemble
from lora_core_xnnpack.files.program_root import NOT_WHOLE, PLANS, ProgramRoot, SegmentOffsets, damaged
from lora_core_xnnpack.files.repacking import PlanSource
from lora_core_xnnpack.files.schema import PLAN, REFERENCE, REFERENCE_INDEX
from lora_core_xnnpack.files.tables import read_table
from lora_core_xnnpack.files.writer import Writer


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
        data = mapped(path)
        try:
            return cls.parse(data)
        except NOT_WHOLE as error:
            raise damaged(path, error) from error

    @classmethod
    def parse(cls, data: Buffer) -> ProgramParts:
        """Take the program file `data` apart; raises one of `NOT_WHOLE`."""
        root = ProgramRoot.read(data)
        segments = root.segments()
        owners = (*(root.mutable_segments or ()), *(() if root.constant_segment is None else (root.constant_segment,)))
        return cls(
            methods={method.source.name: method for method in _methods(root, segments)},
            named={key: segments[index] for key, index in root.named},
            constants=tuple(segments[index] for index in sorted({offsets.segment for offsets in owners})),
            version=root.version,
            file_identifier=root.file_identifier,
            constant_segment=root.constant_segment,
            mutable_segments=root.mutable_segments,
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
            header_length=HEADER_LENGTH,
            file_identifier=self.file_identifier,
            constant_segment=self.constant_segment,
            mutable_segments=self.mutable_segments,
        )


def _methods(root: ProgramRoot, segments: Sequence[Buffer]) -> Iterator[PackedMethod]:
    for at in tables(root.data, root.position, PLANS):
        plan = read_table(root.data, at, PLAN)
        references: list[Any] = [table.fields for table in plan.walk() if table.kind == REFERENCE]
        indices = [int.from_bytes(fields[REFERENCE_INDEX] or b"", "little") for fields in references]
        yield PackedMethod(source=PlanSource(plan), payloads=tuple(segments[index] for index in indices))
