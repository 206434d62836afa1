"""Flatbuffer tables taken apart and packed again, driven by the schema: no ExecuTorch.

Packing follows ExecuTorch's generated Python classes (`exir/_serialize/generated`): a table's children in the order of
its fields, then its fields in the same order; equal vtables are shared. So a plan that was read from
a program and is packed at the same place, with the same vtables before it, has the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TypeAlias

import attrs

from lora_core.pte import Buffer
from lora_core_xnnpack.files.named_blobs import field, number, tables
from lora_core_xnnpack.files.schema import REFERENCE, REFERENCE_INDEX, TABLES, UNIONS
from lora_core_xnnpack.files.writer import Writer

Value: TypeAlias = "bytes | Vector | Table | list[Table] | None"


@attrs.frozen
class Vector:
    """A vector of numbers (or the characters of a string) as bytes."""

    width: int
    data: bytes


@attrs.frozen
class Table:
    """A table: `fields` hold None, the bytes of a number, a `Vector`, a `Table`, or a list of tables."""

    kind: str
    fields: tuple[Value, ...]

    def walk(self) -> Iterator[Table]:
        """Yield this table and all below it, in the order in which they are packed."""
        for value in self.fields:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, Table):
                    yield from child.walk()
        yield self


class _Budget:
    """What is left to read: tables that refer to one another in a net stand for more than any file could hold."""

    def __init__(self, size: int) -> None:
        self._left = 4 * size

    def take(self, size: int) -> None:
        """Take `size` bytes, or raise `ValueError`."""
        self._left -= size
        if self._left < 0:
            raise ValueError("its tables hold more than the file")


def read_table(data: Buffer, at: int, kind: str, budget: _Budget | None = None) -> Table:
    """Take the table of `kind` at position `at` apart; raises `ValueError` or `struct.error` if it is not one."""
    budget = budget or _Budget(len(data))
    budget.take(4)
    count = (struct.unpack_from("<H", data, at - struct.unpack_from("<i", data, at)[0])[0] - 4) // 2
    if count > len(TABLES[kind]):
        raise ValueError(f"a {kind} has {count} fields where {len(TABLES[kind])} are known")
    return Table(kind, tuple(_read_field(data, at, index, type_, budget) for index, type_ in enumerate(TABLES[kind])))


def _read_field(data: Buffer, table: int, index: int, type_: str, budget: _Budget) -> Value:
    at = field(data, table, index)
    if not at:
        return None
    if type_.startswith("|"):
        chosen = number(data, table, index - 1, "<B")
        return read_table(data, _target(data, at), UNIONS[type_[1:]][chosen - 1], budget)
    if type_ in TABLES:
        return read_table(data, _target(data, at), type_, budget)
    inner = type_.strip("[]")
    if inner in TABLES:
        return [read_table(data, position, inner, budget) for position in tables(data, table, index)]
    if type_ == "string" or type_.startswith("["):
        width = 0 if type_ == "string" else struct.calcsize(f"<{inner}")
        content = _vector_bytes(data, _target(data, at), width or 1)
        budget.take(len(content))
        return Vector(width, content)
    return bytes(data[at : at + struct.calcsize(f"<{type_}")])


def _target(data: Buffer, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])


def _vector_bytes(data: Buffer, at: int, width: int) -> bytes:
    length = width * struct.unpack_from("<I", data, at)[0]
    return bytes(data[at + 4 : at + 4 + length])


class Packer:
    """Packs tables into a writer and notes what later packings of the same table need.

    `tables` are the offsets of all tables packed, `references` those of the segment index of every delegate.
    """

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.tables: list[int] = []
        self.references: list[int] = []

    def pack(self, table: Table) -> int:
        """Pack `table` and all below it; return its offset."""
        return self.finish(table, [self.pack_child(value) for value in table.fields])

    def finish(self, table: Table, children: list[int | bytes | None]) -> int:
        """Pack `table` itself, whose `children` are packed: an offset or a number's bytes for each field."""
        at, places = self._writer.table(children)
        self.tables.append(at)
        if table.kind == REFERENCE:
            if children[REFERENCE_INDEX] is None:
                raise ValueError("a delegate's payload stands in segment 0, which holds constants")
            self.references.append(places[REFERENCE_INDEX])
        return at

    def pack_child(self, value: Value) -> int | bytes | None:
        """Pack what a field refers to and return its offset; a number stays what it is."""
        if isinstance(value, Vector):
            return self._writer.vector(value.data, value.width) if value.width else self._writer.string(value.data)
        if isinstance(value, Table):
            return self.pack(value)
        if isinstance(value, list):
            return self._writer.offsets([self.pack(table) for table in value])
        return value
