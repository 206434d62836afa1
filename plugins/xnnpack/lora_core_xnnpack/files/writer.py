"""Write flatbuffer tables from the end to the front, as `flatbuffers.Builder` does, but a whole table at a time.

The bytes are those of `flatbuffers.Builder` driven by ExecuTorch's generated classes; that takes a second for the plan
of a real model, and this a tenth. Offsets are counted from the end of the buffer, like the builder's.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from lora_core.pte import Buffer

VtableKey = tuple[int, ...]
_UINT32 = struct.Struct("<I")


class Writer:
    """Buffers written so far (the last one stands first), and the vtables among them, as the builder keys them."""

    def __init__(self) -> None:
        self.offset = 0
        self.min_align = 4
        self.parts: list[Buffer] = []
        self.vtables: dict[VtableKey, int] = {}

    def data(self) -> bytes:
        """Return all that was written."""
        return b"".join(reversed(self.parts))

    def place(self, data: Buffer) -> None:
        """Write `data` in front of what stands."""
        self.parts.append(data)
        self.offset += len(data)

    def string(self, data: bytes) -> int:
        """Write a string; return its offset."""
        padding = -(self.offset + len(data) + 1) & 3
        self.place(_UINT32.pack(len(data)) + data + bytes(padding + 1))
        return self.offset

    def vector(self, data: bytes, width: int) -> int:
        """Write a vector of numbers `width` bytes wide; return its offset."""
        padding = -(self.offset + len(data)) & (max(width, 4) - 1)
        self.min_align = max(self.min_align, width)
        self.place(_UINT32.pack(len(data) // width) + data + bytes(padding))
        return self.offset

    def offsets(self, tables: Sequence[int]) -> int:
        """Write a vector of references to the tables at these offsets; return its offset."""
        padding = -self.offset & 3
        first = self.offset + padding + 4 * len(tables)
        relative = (first - 4 * index - table for index, table in enumerate(tables))
        self.place(struct.pack(f"<{len(tables) + 1}I", len(tables), *relative) + bytes(padding))
        return self.offset

    def table(self, fields: Sequence[int | bytes | None]) -> tuple[int, list[int]]:
        """Write a table of offsets of what it refers to, of numbers as bytes, and of what is left out (None).

        Return its offset and those of its fields (0: left out).
        """
        end = at = self.offset
        places = []
        parts = []
        for field in fields:
            if field is None:
                places.append(0)
                continue
            size = 4 if isinstance(field, int) else len(field)
            padding = -at & (size - 1)
            at += padding + size
            self.min_align = max(self.min_align, size)
            parts.append((_UINT32.pack(at - field) if isinstance(field, int) else field) + bytes(padding))
            places.append(at)
        padding = -at & 3
        at += padding + 4
        parts.append(bytes(padding))
        self._finish(parts, at, [at - place if place else 0 for place in places], at - end)
        return at, places

    def _finish(self, parts: list[bytes], at: int, relative: list[int], size: int) -> None:
        while relative and not relative[-1]:
            relative.pop()
        key = (*reversed(relative), size)
        vtable, new = self.vtables.get(key), b""
        if vtable is None:
            new = struct.pack(f"<{len(relative) + 2}H", 2 * len(relative) + 4, size, *relative)
            vtable = self.vtables[key] = at + len(new)
        parts += [struct.pack("<i", vtable - at), new]
        self.place(b"".join(reversed(parts)))
