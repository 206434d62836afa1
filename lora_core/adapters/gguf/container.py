"""The GGUF container: metadata and tensors, read without the data and without a library.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian) and, for Q8_0,
`block_q8_0` of ggml-common.h. The `gguf` package reads it too, and brings requests, PyYAML and tqdm along; tests hold
this reader to it.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs
import numpy as np

from lora_core.adapters.gguf.names import MAGIC
from lora_core.errors import AdapterError, InputError, StorageError
from lora_core.intake.files import open_regular
from lora_core.tensors import widen

if TYPE_CHECKING:
    import numpy.typing as npt

VERSIONS = (2, 3)
_Q8_0_VALUES = 32
_Q8_0_BYTES = 2 + _Q8_0_VALUES


@attrs.frozen
class GgufType:
    """How values are stored: `bytes` for each block of `values` along the last axis."""

    name: str
    values: int
    bytes: int


TYPES: Mapping[int, GgufType] = {
    0: GgufType("F32", 1, 4),
    1: GgufType("F16", 1, 2),
    8: GgufType("Q8_0", _Q8_0_VALUES, _Q8_0_BYTES),
    30: GgufType("BF16", 1, 2),
}
"""Types of tensors that are read of adapters, by their numbers in `ggml_type` of ggml.h."""
_CONVERTERS = {"adapter": "convert_lora_to_gguf.py", "model": "convert_hf_to_gguf.py"}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 20
"""More tensors, metadata entries or array elements than any model has: the file is damaged."""


@attrs.frozen(kw_only=True)
class GgufTensor:
    """A tensor of a GGUF file (a `LazyTensor`); `shape` is as numpy has it, GGUF's own is the other way round.

    `dtype` is the name of GGUF's type; `stamp` is the file's size and time when its header was read. `error` is the
    class of refusals.
    """

    name: str
    kind: GgufType
    shape: tuple[int, ...]
    path: Path
    offset: int
    stamp: tuple[int, int]
    error: type[InputError] = AdapterError

    @property
    def dtype(self) -> str:
        """The name of its type."""
        return self.kind.name

    @property
    def size(self) -> int:
        """Bytes of the stored data."""
        return math.prod(self.shape) // self.kind.values * self.kind.bytes

    def read(self) -> npt.NDArray[np.float32]:
        """Return the data as a C-contiguous float32 array, of a type in `TYPES`; raises `error` if the file changed."""
        raw = self.read_bytes(0, self.size)
        values = _blocks(raw) if self.dtype == "Q8_0" else widen(raw, self.dtype)
        return np.ascontiguousarray(values.reshape(self.shape))

    def read_bytes(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        """Return bytes `start` to `stop` of the stored data; raises `error` if the file changed since."""
        try:
            with open_regular(self.path, self.error) as file:
                if _stamp(file) != self.stamp:
                    raise self.error("The file changed while it was in use", where=f"{self.path}: {self.name}")
                file.seek(self.offset + start)
                return np.frombuffer(file.read(stop - start), dtype=np.uint8)
        except OSError as error:
            raise StorageError(f"Cannot read tensor {self.name!r}: {error}.", where=str(self.path)) from error


@attrs.frozen(kw_only=True)
class GgufFile:
    """The header of a GGUF file: its metadata, and its tensors in the order of the file."""

    metadata: Mapping[str, Any]
    tensors: tuple[GgufTensor, ...]


def open_gguf(path: Path, *, types: Mapping[int, GgufType] = TYPES, error: type[InputError] = AdapterError) -> GgufFile:
    """Read the header of the GGUF file at `path`, whose tensors may be of `types`; raises `error` for one that is
    damaged or of another kind.
    """
    try:
        with open_regular(path, error) as file:
            return _Header(file, path, types, error).read()
    except FileNotFoundError as missing:
        raise error("There is no such file", where=str(path)) from missing
    except OSError as unreadable:
        raise StorageError(f"Cannot read the file: {unreadable}.", where=str(path)) from unreadable


class _Header:
    """Reads a header front to back; lengths are checked before anything is allocated for them."""

    def __init__(self, file: BinaryIO, path: Path, types: Mapping[int, GgufType], error: type[InputError]) -> None:
        self._file, self._path, self._types, self._error = file, path, types, error
        self._stamp = _stamp(file)

    def read(self) -> GgufFile:
        if self._bytes(4) != MAGIC:
            raise self._damaged("it does not begin as one")
        version = self._scalar("I")
        if version not in VERSIONS:
            raise self._error(
                f"This is GGUF version {version}; versions {' and '.join(map(str, VERSIONS))} are read",
                where=str(self._path),
                remedy=f"Convert the {self._what} again with llama.cpp's {_CONVERTERS[self._what]}.",
            )
        tensors, entries = self._count("Q"), self._count("Q")
        metadata = {self._string(): self._value(self._scalar("I")) for _ in range(entries)}
        infos = [self._info() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _MOST:
            raise self._damaged(f"its alignment is {alignment!r}")
        start = -(-self._file.tell() // alignment) * alignment
        return GgufFile(metadata=metadata, tensors=tuple(self._tensor(start, *info) for info in infos))

    def _tensor(self, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> GgufTensor:
        if kind not in self._types:
            readable = ", ".join(each.name for each in self._types.values())
            raise self._error(
                f"Tensor {name} is of GGUF type {kind}; read are {readable}",
                where=str(self._path),
                remedy=f"Convert the {self._what} again with --outtype f16.",
            )
        tensor = GgufTensor(
            name=name,
            kind=self._types[kind],
            shape=shape,
            path=self._path,
            offset=start + offset,
            stamp=self._stamp,
            error=self._error,
        )
        if shape[-1] % tensor.kind.values:
            raise self._damaged(f"the rows of {name} are no whole blocks")
        if tensor.offset + tensor.size > self._stamp[0]:
            raise self._damaged(f"tensor {name} lies beyond its end")
        return tensor

    def _info(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._string(), self._scalar("I")
        if not 1 <= dimensions <= 4:
            raise self._damaged(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, length = self._scalar("I"), self._count("Q")
            if inner == _ARRAY:
                raise self._damaged("it nests arrays")
            return [self._value(inner) for _ in range(length)]
        if kind not in _SCALARS:
            raise self._damaged(f"a value has type {kind}")
        return self._scalar(_SCALARS[kind])

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8", errors="replace")

    def _count(self, form: str) -> int:
        count: int = self._scalar(form)
        if count > _MOST:
            raise self._damaged(f"it tells of {count} entries")
        return count

    def _scalar(self, form: str) -> Any:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))[0]

    def _bytes(self, count: int) -> bytes:
        if count > self._stamp[0]:
            raise self._damaged("it ends within its header")
        data = self._file.read(count)
        if len(data) < count:
            raise self._damaged("it ends within its header")
        return data

    @property
    def _what(self) -> str:
        return "adapter" if self._error is AdapterError else "model"

    def _damaged(self, how: str) -> InputError:
        remedy = "The file is cut short or damaged: copy or download it again."
        return self._error(f"This is no whole GGUF file: {how}", where=str(self._path), remedy=remedy)


def _blocks(raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the values of Q8_0 blocks: a float16 scale, then 32 signed bytes."""
    blocks = raw.reshape(-1, _Q8_0_BYTES)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    return scales * blocks[:, 2:].view(np.int8).astype(np.float32)


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
