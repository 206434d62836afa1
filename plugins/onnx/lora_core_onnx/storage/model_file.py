"""What a session has to know of a model, read without the `onnx` package, which takes longer than a link.

Format: protobuf messages of onnx's `onnx.proto`. Of `ModelProto`, field 14 holds pairs of a key (1) and a value (2),
and field 7 the graph; of that, field 5 holds tensors with sizes (1), a name (8) and where their bytes are (13: pairs).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import attrs

from lora_core.errors import BundleError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import TABLE, TENSORS, raised
from lora_core.intake.parsing import parsing

FOUNDATION = "foundation"
POSITIONS = "cos_cache"
"""The rotary table, which has a row for each position."""
_METADATA, _GRAPH, _TENSOR = 14, 7, 5
_KEY, _VALUE = 1, 2
_SIZES, _NAME, _PLACE = 1, 8, 13
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@attrs.frozen(kw_only=True)
class ModelFile:
    """`foundation` is the fingerprint of the base that it names, `positions` how many it has a rotary table for, and
    `files` are those in which it says that its tensors lie.
    """

    foundation: str
    positions: int
    files: frozenset[str]


def foundation_of(model: Path) -> str:
    """Return the fingerprint in the metadata of the model at `model`; raises `BundleError` if there is none."""
    data = _read(model)
    with parsing(model):
        return _foundation(data)


def read_model(model: Path) -> ModelFile:
    """Return what the model at `model` says of itself; raises `BundleError` for a damaged or foreign one."""
    data = _read(model)
    with parsing(model):
        positions, files = 0, set[str]()
        for tensor in _tensors(data):
            files |= tensor.files
            positions = tensor.sizes[0] if tensor.name == POSITIONS.encode() and tensor.sizes else positions
        return ModelFile(foundation=_foundation(data), positions=positions, files=frozenset(files))


def _read(model: Path) -> memoryview:
    return memoryview(read_regular(model, TABLE, BundleError, links=False))


def _foundation(data: memoryview) -> str:
    for field, value in _fields(data):
        if field == _METADATA and isinstance(value, memoryview):
            key, told = _pair(value)
            if key == FOUNDATION:
                return told
    raise ValueError("it names no foundation")


@attrs.frozen(kw_only=True)
class _Tensor:
    name: bytes
    sizes: tuple[int, ...]
    files: frozenset[str]


def _tensors(data: memoryview) -> Iterator[_Tensor]:
    for field, graph in _fields(data):
        if field == _GRAPH and isinstance(graph, memoryview):
            for inner, tensor in _fields(graph):
                if inner == _TENSOR and isinstance(tensor, memoryview):
                    yield _tensor(tensor)


def _tensor(data: memoryview) -> _Tensor:
    name, sizes, files = b"", list[int](), set[str]()
    for field, value in _fields(data):
        if field == _SIZES:
            sizes += [value] if isinstance(value, int) else _varints(value)
        elif field == _NAME and isinstance(value, memoryview):
            name = bytes(value)
        elif field == _PLACE and isinstance(value, memoryview):
            key, told = _pair(value)
            files |= {told} if key == "location" else set()
    return _Tensor(name=name, sizes=tuple(sizes), files=frozenset(files))


def _pair(data: memoryview) -> tuple[str, str]:
    pair = {field: bytes(value).decode() for field, value in _fields(data) if isinstance(value, memoryview)}
    return pair.get(_KEY, ""), pair.get(_VALUE, "")


def _varints(data: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(data):
        number, place = _varint(data, place)
        found.append(number)
    return found


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield number and value of each field of a message; those of fixed size are passed over."""
    place, count = 0, 0
    while place < len(data):
        if (count := count + 1) > raised(TENSORS):
            raise ValueError(f"a message has more than {raised(TENSORS)} fields")
        tag, place = _varint(data, place)
        field, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            size, place = _varint(data, place)
            if place + size > len(data):
                raise ValueError("a field ends behind its message")
            yield field, data[place : place + size]
            place += size
        elif kind == _VARINT:
            value, place = _varint(data, place)
            yield field, value
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"field {field} has the unknown type {kind}")


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return the number at `place`, and where it ends."""
    number = shift = 0
    while True:
        byte = data[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
        if shift > 63:
            raise ValueError("a number is too long")
