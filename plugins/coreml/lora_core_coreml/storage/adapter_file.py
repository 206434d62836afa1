"""Adapters as data: FlatTensor files (`.ptd`), one for each adapter, written and read through ExecuTorch's `flatc`.

Format of ExecuTorch 1.5.1 (`extension/flat_tensor/serialize`): a flatbuffer (flat_tensor.fbs) with a header behind its
identifier, then segments at multiples of 128 bytes. Equal tensors are stored once. Tensors are named as ExecuTorch's
adapters for forward arguments name them (`lora_core.adapters.slots.input_names`), in the type of the program; beside
them stands the fingerprint of the foundation that they are for, under `MARK`, with no layout.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import BundleError
from lora_core.intake.files import open_regular
from lora_core.intake.limits import TABLE, raised
from lora_core.intake.parsing import parsing
from lora_core.pte import aligned, padding_before, segment_offsets
from lora_core_coreml.storage import flatc

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Matrix = npt.NDArray[np.float16] | npt.NDArray[np.float32]

MARK = "lora_core.foundation"
_HEADER = struct.Struct("<4sIQQQQ")  # magic, length, offset and size of the flatbuffer, base and size of the segments
_HEADER_LENGTH = 48
"""Bytes that the header takes: its 40, rounded up to the alignment of the flatbuffer, 16."""
_HEAD = 64
_SEGMENT = 128
_TYPES = {"HALF": "<f2", "FLOAT": "<f4"}


@attrs.frozen(kw_only=True)
class AdapterTensor:
    """A tensor of an adapter: `size` bytes at `offset` of the file, of a numpy type."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@attrs.frozen(kw_only=True)
class AdapterData:
    """What a file holds: `tensors` by name in stored order, and the fingerprint of the `foundation` that it is for.

    `tables` are the bytes before the segments and `mark` those of the fingerprint, as (offset, size).
    """

    path: Path
    foundation: str
    tensors: Mapping[str, AdapterTensor]
    tables: tuple[int, int]
    mark: tuple[int, int]

    def read(self, key: str) -> Matrix:
        """Return the values of a tensor; raises `BundleError` for a file that has become shorter."""
        import numpy as np

        tensor = self.tensors[key]
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            data = file.read(tensor.size)
        with parsing(self.path):
            found: Matrix = np.frombuffer(data, tensor.dtype).reshape(tensor.shape)
            return found

    @property
    def stretches(self) -> Iterator[tuple[AdapterTensor, list[str]]]:
        """Every stored stretch of bytes once: the first tensor that it is, and the names of all."""
        found: dict[int, tuple[AdapterTensor, list[str]]] = {}
        for key, tensor in self.tensors.items():
            found.setdefault(tensor.offset, (tensor, []))[1].append(key)
        yield from found.values()


def write_adapter(path: Path, foundation: str, tensors: Mapping[str, Matrix]) -> str:
    """Write `tensors` by name for the base with the fingerprint `foundation`; return the SHA-256 of the file."""
    segments: dict[bytes, int] = {foundation.encode(): 0}
    named: list[dict[str, Any]] = [{"key": MARK, "segment_index": 0}]
    for key, tensor in tensors.items():
        number = segments.setdefault(tensor.tobytes(), len(segments))
        layout = {
            "scalar_type": "HALF" if tensor.dtype.itemsize == 2 else "FLOAT",
            "sizes": list(tensor.shape),
            "dim_order": list(range(tensor.ndim)),
        }
        named.append({"key": key, "segment_index": number, "tensor_layout": layout})
    sizes = [len(data) for data in segments]
    spans = zip(segment_offsets(sizes), sizes, strict=True)
    table = [{"offset": offset, "size": size} for offset, size in spans]
    front = _front(flatc.encode(flatc.FLAT_TENSOR, {"version": 0, "segments": table, "named_data": named}), sizes)
    digest = hashlib.sha256(front)
    with path.open("wb") as file:
        file.write(front)
        for data, padding in zip(segments, padding_before(sizes), strict=True):
            for piece in (bytes(padding), data):
                file.write(piece)
                digest.update(piece)
    return digest.hexdigest()


def read_adapter(path: Path) -> AdapterData:
    """Return what the file at `path` holds, its tensors unread; raises `BundleError` for a damaged or foreign one."""
    with open_regular(path, BundleError, links=False) as file, parsing(path):
        size = path.stat().st_size
        head = file.read(_HEAD)
        magic, _, start, length, base, total = _HEADER.unpack_from(head, 8)
        if head[4:8] != b"FT01" or magic != b"FH01":
            raise ValueError("it is no ExecuTorch data file")
        if start + length > min(base, raised(TABLE)) or base + total > size or size - base - total >= _SEGMENT:
            raise ValueError("it is not as long as it says")
        file.seek(0)
        content = flatc.decode(flatc.FLAT_TENSOR, file.read(start + length), where=str(path))
        spans = [(base + int(each["offset"]), int(each["size"])) for each in content["segments"]]
        _require_dense(spans, base, size)
        tensors = [each for each in content["named_data"] if each["key"] != MARK]
        marks = [spans[each["segment_index"]] for each in content["named_data"] if each["key"] == MARK]
        if len(marks) != 1 or len({each["key"] for each in tensors}) != len(tensors):
            raise ValueError("it has no mark of a foundation, or a name twice")
        file.seek(marks[0][0])
        foundation = file.read(marks[0][1]).decode("ascii")
        if len({each["segment_index"] for each in tensors}) != len(spans) - 1:
            raise ValueError("bytes of it have no name")
        found = [_tensor(each, *spans[each["segment_index"]]) for each in tensors]
    return AdapterData(
        path=path,
        foundation=foundation,
        tensors={each.key: each for each in found},
        tables=(0, start + length),
        mark=marks[0],
    )


def _tensor(entry: Mapping[str, Any], offset: int, size: int) -> AdapterTensor:
    layout = entry["tensor_layout"]
    dtype, shape = _TYPES[layout["scalar_type"]], tuple(map(int, layout["sizes"]))
    if len(shape) != 2 or min(shape) < 1 or int(dtype[-1]) * shape[0] * shape[1] != size:
        raise ValueError(f"a matrix of shape {shape} has {size} bytes")
    if list(layout["dim_order"]) != [0, 1]:
        raise ValueError("a matrix is not stored row by row")
    return AdapterTensor(key=entry["key"], dtype=dtype, shape=shape, offset=offset, size=size)


def _front(flatbuffer: bytes, sizes: list[int]) -> bytes:
    """Return everything before the segments: `flatbuffer` with the header inside, and zero bytes up to the base."""
    size = _HEADER_LENGTH + len(flatbuffer)
    base = aligned(size)
    total = segment_offsets(sizes)[-1] + sizes[-1]
    header = _HEADER.pack(b"FH01", _HEADER.size, _HEADER_LENGTH, len(flatbuffer), base, total)
    root = struct.pack("<I", struct.unpack_from("<I", flatbuffer)[0] + _HEADER_LENGTH)
    return b"".join((root, flatbuffer[4:8], header.ljust(_HEADER_LENGTH, b"\0"), flatbuffer[8:])).ljust(base, b"\0")


def _require_dense(spans: list[tuple[int, int]], base: int, size: int) -> None:
    """Raise `ValueError` unless segments follow one another with no more than padding between, to the end."""
    end = base
    for offset, length in [*sorted(spans), (size, 0)]:
        if length < 0 or not 0 <= offset - end < _SEGMENT:
            raise ValueError("its segments overlap, or leave bytes between them")
        end = offset + length
