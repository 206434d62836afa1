"""Stored tensors, read on demand and without torch: the interface, and the tensors of safetensors files.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data without holes).
The library validates the file; offsets come from the header because the library does not hand them out, and bfloat16
has no numpy type of its own. Data is read, not mapped: a mapped file that is cut short while in use kills the
process with SIGBUS, a read of it is an error that can be reported.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

import attrs
import numpy as np

from lora_core.errors import InputError, Problem, StorageError
from lora_core.git_lfs import pointer_problem
from lora_core.intake.files import open_regular
from lora_core.intake.limits import HEADER, RAISE, TENSORS, raised
from lora_core.intake.plain_json import parse_json

if TYPE_CHECKING:
    import numpy.typing as npt

READABLE = ("F32", "F16", "BF16")
_EXPONENT = {"F16": 0x7C00, "BF16": 0x7F80}
_TOGETHER = 1 << 22
"""Bytes of small tensors that are read at a time."""
_COPY_AGAIN = "The file is cut short or damaged: copy or download it again."


class LazyTensor(Protocol):
    """A tensor whose header is known and whose data is read on demand.

    `name` is the tensor's key in its file, `dtype` the safetensors type name (`F32`, `F16`, `BF16`).
    """

    @property
    def name(self) -> str:
        """The tensor's key in its file."""
        ...

    @property
    def dtype(self) -> str:
        """The type it is stored in."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size along each axis."""
        ...

    @property
    def path(self) -> Path:
        """The file that holds it."""
        ...

    def read(self) -> npt.NDArray[np.float32]:
        """Return the data as a C-contiguous float32 array of `shape`."""
        ...


@attrs.frozen(kw_only=True)
class StoredTensor:
    """A tensor of a safetensors file (a `LazyTensor`): `size` bytes at `offset` of `path`.

    `stamp` is the file's size and modification time when its header was read: data of a file that was replaced since
    is refused rather than mixed with the old header. `error` is the class of such refusals.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    size: int
    stamp: tuple[int, int]
    error: type[InputError] = InputError

    def read(self) -> npt.NDArray[np.float32]:
        """Return the data as a C-contiguous float32 array; raises `error` if the file changed since."""
        return widen(self._read(0, self.size), self.dtype).reshape(self.shape)

    def read_rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return the rows `start` to `stop` (along the first axis) of what `read` returns, reading no others."""
        row = self.size // self.shape[0]
        raw = self._read(start * row, (stop - start) * row)
        return widen(raw, self.dtype).reshape(stop - start, *self.shape[1:])

    def read_bytes(self) -> npt.NDArray[np.uint8]:
        """Return the bytes as they are stored, of whatever type; raises `error` if the file changed since."""
        return self._read(0, self.size)

    def _read(self, start: int, size: int) -> npt.NDArray[np.uint8]:
        try:
            with self.path.open("rb", buffering=0) as file:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise self.error(self._problem("The file changed while it was in use"))
                file.seek(self.offset + start)
                return self._load(file, size)
        except OSError as error:
            raise StorageError(f"Cannot read tensor {self.name!r}: {error}.", where=str(self.path)) from error

    def _load(self, file: BinaryIO, size: int) -> npt.NDArray[np.uint8]:
        raw = np.empty(size, dtype=np.uint8)
        view, done = raw.data, 0
        while done < size:
            count = file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise self.error(self._problem("The file ends within this tensor", _COPY_AGAIN))
            done += count
        return raw

    def _problem(self, what: str, remedy: str = "Run the command again.") -> Problem:
        return Problem(what=what, where=f"{self.path}: {self.name}", remedy=remedy)


@runtime_checkable
class Sliceable(Protocol):
    """A `LazyTensor` of which some rows can be read without the others."""

    def read_rows(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return rows `start` to `stop` along the first axis."""
        ...


def row_blocks(tensor: LazyTensor, limit: int) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the rows of `tensor` in blocks of at most `limit` float32 bytes, at least a row each.

    Only one block is in memory where the tensor is `Sliceable`; else it is read once and yielded in slices.
    """
    rows = tensor.shape[0]
    step = max(1, limit * rows // max(1, 4 * math.prod(tensor.shape)))
    if isinstance(tensor, Sliceable):
        yield from (tensor.read_rows(start, min(start + step, rows)) for start in range(0, rows, step))
    else:
        whole = tensor.read()
        yield from (whole[start : start + step] for start in range(0, rows, step))


@attrs.frozen(kw_only=True)
class Scan:
    """What one pass over the data found: SHA-256 of the whole file, and the tensors that hold NaN or infinity."""

    sha256: str
    not_finite: tuple[str, ...]


def widen(raw: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float32]:
    """Return the float32 values of stored bytes; exact for every type in `READABLE`."""
    if dtype == "F32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if dtype == "F16":
        return raw.view("<f2").astype(np.float32)
    if dtype == "BF16":  # the upper half of a float32
        wide = raw.view("<u2").astype(np.uint32)
        wide <<= np.uint32(16)
        return wide.view(np.float32)
    raise ValueError(f"no float32 reading of {dtype}")


def narrow(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    """Return float32 values in a type of `READABLE`, little-endian: what `widen` reads, the inverse of it.

    Values that the type does not hold are rounded for F16 and cut for BF16; `widen` gives none of those.
    """
    if dtype == "F32":
        return values.astype("<f4", copy=False)
    if dtype == "F16":
        return values.astype("<f2")
    if dtype == "BF16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
    raise ValueError(f"no {dtype} of float32")


def open_tensors(path: Path, *, error: type[InputError] = InputError) -> tuple[StoredTensor, ...]:
    """Return the tensors of the safetensors file at `path`, in the order of their data, reading the header only.

    Raises `error` for a file that is missing, damaged or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        stamp = _stamp(path.stat())
        if (pointer := pointer_problem(path)) is not None:
            raise error(pointer)
        length = _header_length(path, error)
        if length is None:
            raise error("This is no safetensors file.", where=str(path), remedy=_COPY_AGAIN)
        with safe_open(path, framework="numpy"):
            pass  # validates sizes, offsets and types of the whole header
        return _parse_header(path, stamp, error)
    except FileNotFoundError as missing:
        raise error("There is no such file.", where=str(path)) from missing
    except SafetensorError as damaged:
        raise error(_damage(path, str(damaged))) from damaged
    except ValueError as wrong:
        what = f"The weights cannot be read: of the header, {wrong}"
        raise error(Problem(what=what, where=str(path), remedy=_COPY_AGAIN)) from wrong
    except OSError as unreadable:
        raise StorageError(f"Cannot read the file: {unreadable}.", where=str(path)) from unreadable


def _header_length(path: Path, error: type[InputError]) -> int | None:
    """Return how long the header says it is; None if the file is too short to say."""
    with open_regular(path, error) as file:
        length = int.from_bytes(start, "little") if len(start := file.read(8)) == 8 else None
    if length is not None and length > raised(HEADER):
        what = f"The weights cannot be read: the header says that it is {length} bytes long"
        raise error(Problem(what=what, where=str(path), remedy=_COPY_AGAIN))
    return length


def scan(path: Path, tensors: Sequence[StoredTensor]) -> Scan:
    """Read the file once, hashing it and looking for NaN and infinity.

    Memory is that of its largest tensor, or of some megabytes of small ones.
    """
    digest = hashlib.sha256()
    not_finite: list[str] = []
    try:
        with path.open("rb", buffering=0) as file:
            start = min((tensor.offset for tensor in tensors), default=None)
            digest.update(file.read() if start is None else _head(file, start))
            for together in _runs(tensors):
                raw = together[0]._load(file, sum(tensor.size for tensor in together))
                digest.update(raw.data)
                not_finite += _not_finite(raw, together)
    except OSError as error:
        raise StorageError(f"Cannot read the file: {error}.", where=str(path)) from error
    return Scan(sha256=digest.hexdigest(), not_finite=tuple(not_finite))


def _head(file: BinaryIO, size: int) -> bytes:
    parts = []
    while size and (part := file.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _runs(tensors: Sequence[StoredTensor]) -> Iterator[list[StoredTensor]]:
    """Yield neighbours of one file and type, at most `_TOGETHER` bytes of them at a time, and larger ones alone."""
    run: list[StoredTensor] = []
    size = 0
    for tensor in tensors:
        if run and not _continues(run[-1], tensor, size):
            yield run
            run, size = [], 0
        run.append(tensor)
        size += tensor.size
    if run:
        yield run


def _continues(last: StoredTensor, tensor: StoredTensor, size: int) -> bool:
    alike = (tensor.path, tensor.stamp, tensor.dtype, tensor.offset)
    return alike == (last.path, last.stamp, last.dtype, last.offset + last.size) and size + tensor.size <= _TOGETHER


def _not_finite(raw: npt.NDArray[np.uint8], tensors: Sequence[StoredTensor]) -> Iterator[str]:
    """Yield the names of those of `tensors`, whose bytes `raw` are one after another, that hold NaN or infinity."""
    if tensors[0].dtype not in READABLE or _finite(raw, tensors[0].dtype):
        return
    at = 0
    for tensor in tensors:
        if not _finite(raw[at : at + tensor.size], tensor.dtype):
            yield tensor.name
        at += tensor.size


def _finite(raw: npt.NDArray[np.uint8], dtype: str) -> bool:
    if dtype == "F32":
        return bool(np.isfinite(raw.view("<f4")).all())
    ones = np.uint16(_EXPONENT[dtype])  # of an exponent that says NaN or infinity
    return not ((raw.view("<u2") & ones) == ones).any()


def stored_bytes(tensors: Sequence[StoredTensor]) -> list[bytes]:
    """Return the bytes of each as they are stored; neighbours in a file are read together.

    Raises as `StoredTensor.read_bytes`.
    """
    found: dict[int, bytes] = {}
    for together in _runs(sorted(tensors, key=lambda each: (each.path, each.offset, each.size))):
        raw = attrs.evolve(together[0], size=sum(each.size for each in together)).read_bytes().data
        starts = accumulate((each.size for each in together), initial=0)
        for start, each in zip(starts, together, strict=False):
            found[id(each)] = bytes(raw[start : start + each.size])
    return [found[id(each)] for each in tensors]


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _header(path: Path) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
        return parse_json(file.read(length)), 8 + length


def _parse_header(path: Path, stamp: tuple[int, int], error: type[InputError]) -> tuple[StoredTensor, ...]:
    header, start = _header(path)
    header.pop("__metadata__", None)
    if len(header) > raised(TENSORS):
        what = f"It has {len(header)} tensors, {raised(TENSORS)} at most are read."
        raise error(what, where=str(path), remedy=RAISE)
    tensors = [
        StoredTensor(
            name=name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            path=path,
            offset=start + entry["data_offsets"][0],
            size=entry["data_offsets"][1] - entry["data_offsets"][0],
            stamp=stamp,
            error=error,
        )
        for name, entry in header.items()
    ]
    return tuple(sorted(tensors, key=lambda tensor: (tensor.offset, tensor.size)))


def _damage(path: Path, reason: str) -> Problem:
    """Say which tensor is cut off, where the header still tells."""
    try:
        header, start = _header(path)
        ends = [(entry["data_offsets"][1] + start, name) for name, entry in header.items() if name != "__metadata__"]
        cut = min((end, name) for end, name in ends if end > path.stat().st_size)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError, MemoryError):
        return Problem(what=f"The weights cannot be read: {reason}", where=str(path), remedy=_COPY_AGAIN)
    return Problem(what="The weights are cut short", where=f"{path}: {cut[1]}", remedy=_COPY_AGAIN)
