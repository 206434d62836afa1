"""Execution plans packed again and again: the same plan under many names, in a fraction of the time of the first.

A plan's packed bytes depend on the alignment of the place where it starts, and on the vtables that stand before it.
Once all its vtables do, packing it again gives the same bytes but for the distances to those vtables and for the
segments of its delegates. So these are patched in a copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_xnnpack.files.schema import NAME
from lora_core_xnnpack.files.tables import Packer, Table, Vector
from lora_core_xnnpack.files.writer import VtableKey, Writer

_PHASES = 8  # no alignment inside a plan is larger (program.fbs)
Positions = npt.NDArray[np.int64]


@attrs.frozen(kw_only=True)
class _Chunk:
    """A packed plan without its name. Positions are offsets from the place where the plan starts.

    `vtable_of_table` has for each of `tables` the index of its vtable in `vtables`.
    """

    data: bytes
    root: int
    references: Positions
    tables: Positions
    vtables: tuple[VtableKey, ...]
    vtable_of_table: Positions


class PlanSource:
    """A plan to be packed under several names."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self._chunks: dict[int, _Chunk] = {}

    @property
    def name(self) -> str:
        """What the plan is called where it was read."""
        name = self.table.fields[NAME]
        assert isinstance(name, Vector)
        return name.data.decode("utf-8")

    def pack(self, writer: Writer, name: str, segments: Sequence[int]) -> int:
        """Write the plan as `name`, its delegates' payloads in `segments`; return its offset."""
        offset = writer.string(name.encode("utf-8"))
        start = writer.offset
        chunk = self._chunks.get(start % _PHASES)
        if chunk is None or any(key not in writer.vtables for key in chunk.vtables):
            chunk = self._first(writer, offset)
        if len(segments) != len(chunk.references):
            raise ValueError(f"there are {len(chunk.references)} delegates in the plan, and {len(segments)} payloads")
        vtables = np.array([writer.vtables[key] for key in chunk.vtables], np.int64)
        data = np.frombuffer(chunk.data, np.uint8).copy()
        _patch(data, chunk.tables, vtables[chunk.vtable_of_table] - (start + chunk.tables))
        _patch(data, chunk.references, np.array(segments, np.int64))
        writer.place(data.tobytes())
        return start + chunk.root

    def _first(self, writer: Writer, name: int) -> _Chunk:
        """Pack the plan table by table; the writer is left as it was but for new vtables, which are in the chunk."""
        start, parts, known = writer.offset, len(writer.parts), len(writer.vtables)
        packer = Packer(writer)
        children = [packer.pack_child(value) for value in self.table.fields[1:]]
        root = packer.finish(self.table, [name, *children])
        data = b"".join(reversed(writer.parts[parts:]))
        del writer.parts[parts:]
        writer.offset = start
        keys = {offset: key for key, offset in writer.vtables.items()}
        tables = np.array(packer.tables, np.int64) - start
        distances = np.array([int.from_bytes(data[-at:][:4], "little", signed=True) for at in tables.tolist()])
        used = [keys[offset] for offset in (distances + tables + start).tolist()]
        vtables = {key: index for index, key in enumerate(dict.fromkeys(used))}
        chunk = _Chunk(
            data=data,
            root=root - start,
            references=np.array(packer.references, np.int64) - start,
            tables=tables,
            vtables=tuple(vtables),
            vtable_of_table=np.array([vtables[key] for key in used], np.int64),
        )
        if len(writer.vtables) == known:
            self._chunks[start % _PHASES] = chunk
        return chunk


def _patch(data: npt.NDArray[np.uint8], offsets: Positions, values: Positions) -> None:
    """Put 32-bit `values` at `offsets`, which are counted from the end."""
    places = len(data) - offsets
    data[places[:, None] + np.arange(4)] = values.astype("<i4").view(np.uint8).reshape(-1, 4)
