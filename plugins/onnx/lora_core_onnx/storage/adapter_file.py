"""`.onnx_adapter` files: written by ONNX Runtime, and read here without it.

Format: `onnxruntime/lora/adapter_format/adapter_schema.fbs`, version 1: a flatbuffer with the identifier `TORT` whose
root has `format_version`, `adapter_version`, `model_version` and `parameters`, each with `name`, `dims`, `data_type`
(as in ONNX) and `raw_data`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.errors import BundleError
from lora_core.intake.files import open_regular
from lora_core.intake.limits import raised
from lora_core.intake.parsing import parsing
from lora_core_onnx.library import onnxruntime
from lora_core_onnx.storage.stretches import require_apart

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

IDENTIFIER = b"TORT"
ADAPTER_VERSION = 1
_FLOAT = 1
_LONGEST_NAME = 4096
_PARAMETERS = 100_000
"""Of one file: two for each linear layer."""
_U16, _I32, _U32, _I64 = struct.Struct("<H"), struct.Struct("<i"), struct.Struct("<I"), struct.Struct("<q")


@attrs.frozen(kw_only=True)
class Parameter:
    """A tensor of an adapter: float32, `size` bytes at `offset` of the file."""

    name: str
    shape: tuple[int, ...]
    offset: int
    size: int


@attrs.frozen(kw_only=True)
class AdapterFile:
    """What a file holds; `model_version` says which base it is for, as `version_of` makes it of a fingerprint.

    `tables` are all bytes that say what lies where, as offsets and sizes; what is in no table and no parameter is
    padding.
    """

    path: Path
    model_version: int
    parameters: tuple[Parameter, ...]
    tables: tuple[tuple[int, int], ...]

    def read(self, parameter: Parameter) -> npt.NDArray[np.float32]:
        """Return the values of `parameter`."""
        import numpy as np

        with self.path.open("rb") as file:
            file.seek(parameter.offset)
            data = file.read(parameter.size)
        return np.frombuffer(data, "<f4").reshape(parameter.shape)


def version_of(fingerprint: str) -> int:
    """Return the number that stands in adapter files for a foundation: the first 31 bits of its fingerprint."""
    return int(fingerprint[:8], 16) >> 1


def write_adapter(path: Path, foundation: str, values: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Write `values` by name of their graph inputs, for the base with the fingerprint `foundation`."""
    library = onnxruntime()
    file = library.AdapterFormat()
    file.set_adapter_version(ADAPTER_VERSION)
    file.set_model_version(version_of(foundation))
    # The order in which parameters are set decides that in the file.
    file.set_parameters({name: library.OrtValue.ortvalue_from_numpy(values[name]) for name in sorted(values)})
    file.export_adapter(str(path))


def read_adapter(path: Path) -> AdapterFile:
    """Return what the file at `path` holds, its tensors unread; raises `BundleError` for a damaged or foreign one."""
    with open_regular(path, BundleError, links=False) as file, parsing(path):
        return _parse(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _parse(path: Path, data: mmap.mmap) -> AdapterFile:
    if data[4:8] != IDENTIFIER:
        raise ValueError("it is no ONNX Runtime adapter")
    seen = {(0, 8)}  # where the root is, and the identifier
    root = _Table(data, _follow(data, 0), seen)
    if (version := root.number(0)) != 1:
        raise ValueError(f"its format has version {version}, and 1 is known")
    parameters = tuple(_parameter(data, table) for table in root.tables(3))
    names = [parameter.name for parameter in parameters]
    if len(set(names)) != len(names):
        raise ValueError("a name is there twice")
    require_apart([(parameter.offset, parameter.size) for parameter in parameters])
    return AdapterFile(path=path, model_version=root.number(2), parameters=parameters, tables=tuple(sorted(seen)))


def _parameter(data: mmap.mmap, table: _Table) -> Parameter:
    name, dims = table.vector(0, 1, whole=True), table.vector(1, 8, whole=True)
    raw = table.vector(3, 1)
    if name.count > _LONGEST_NAME or dims.count != 2 or table.number(2) != _FLOAT:
        raise ValueError("a parameter is no float32 matrix with a name")
    shape = tuple(_I64.unpack_from(data, dims.start + 8 * axis)[0] for axis in range(2))
    if min(shape) < 1 or 4 * shape[0] * shape[1] != raw.count:
        raise ValueError(f"a parameter of shape {shape} has {raw.count} bytes")
    return Parameter(
        name=data[name.start : name.start + name.count].decode(), shape=shape, offset=raw.start, size=raw.count
    )


@attrs.frozen(kw_only=True)
class _Vector:
    start: int
    count: int


class _Table:
    """A table of a flatbuffer: its fields by index, each checked to lie within the file.

    `seen` collects the bytes that were read as tables, as offsets and sizes.
    """

    def __init__(self, data: mmap.mmap, place: int, seen: set[tuple[int, int]]) -> None:
        self._data, self._place, self._seen = data, place, seen
        self._fields = place - _I32.unpack_from(data, place)[0]
        if self._fields < 0:
            raise ValueError("a table lies outside of the file")
        self._length, size = (_U16.unpack_from(data, self._fields + at)[0] for at in (0, 2))
        seen |= {(place, size), (self._fields, self._length)}

    def number(self, field: int) -> int:
        """Return a 32-bit number, 0 if it is left out."""
        place = self._at(field)
        return 0 if place is None else int(_I32.unpack_from(self._data, place)[0])

    def vector(self, field: int, width: int, *, whole: bool = False) -> _Vector:
        """Return where the elements of a vector lie, each `width` bytes; `whole`: they say what lies where, too."""
        place = self._at(field)
        if place is None:
            return _Vector(start=0, count=0)
        start = _follow(self._data, place)
        count = _U32.unpack_from(self._data, start)[0]
        if start + 4 + width * count > len(self._data):
            raise ValueError("a vector ends behind the file")
        self._seen.add((start, 4 + width * count * whole))
        return _Vector(start=start + 4, count=count)

    def tables(self, field: int) -> list[_Table]:
        """Return the tables of a vector."""
        vector = self.vector(field, 4, whole=True)
        if vector.count > raised(_PARAMETERS):
            raise ValueError(f"it has {vector.count} parameters, {raised(_PARAMETERS)} at most are read")
        starts = (_follow(self._data, vector.start + 4 * index) for index in range(vector.count))
        return [_Table(self._data, start, self._seen) for start in starts]

    def _at(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._length:
            return None
        offset = _U16.unpack_from(self._data, self._fields + entry)[0]
        return self._place + offset if offset else None


def _follow(data: mmap.mmap, place: int) -> int:
    """Return where the offset at `place` points to."""
    return place + int(_U32.unpack_from(data, place)[0])
