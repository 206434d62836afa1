"""The foundation that a model names, read without the `onnx` package, which takes longer than a link.

Format: a protobuf message, `ModelProto` of onnx's `onnx.proto`: field 14 holds pairs of a key (1) and a value (2).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lora_core.errors import BundleError
from lora_core.intake.files import open_regular
from lora_core.intake.parsing import parsing

FOUNDATION = "foundation"
_METADATA, _KEY, _VALUE = 14, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def foundation_of(model: Path) -> str:
    """Return the fingerprint in the metadata of the model at `model`; raises `BundleError` if there is none."""
    with open_regular(model, BundleError) as file, parsing(model):
        data = file.read()
        for field, start, end in _fields(data, 0, len(data)):
            if field == _METADATA:
                pair = {key: data[first:last].decode() for key, first, last in _fields(data, start, end)}
                if pair.get(_KEY) == FOUNDATION:
                    return pair[_VALUE]
        raise ValueError("it names no foundation")


def _fields(data: bytes, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message that is bytes or text."""
    while place < end:
        tag, place = _varint(data, place)
        field, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            size, place = _varint(data, place)
            if place + size > end:
                raise ValueError("a field ends behind its message")
            yield field, place, place + size
            place += size
        elif kind == _VARINT:
            _, place = _varint(data, place)
        elif kind in (_FIXED64, _FIXED32):
            place += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"field {field} has the unknown type {kind}")


def _varint(data: bytes, place: int) -> tuple[int, int]:
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
