"""MIL blob storage (`weight.bin`): constants of an ML program, each behind a 64-byte record.

Format as coremltools 9.0 writes it (MILBlob StorageFormat.hpp): a 64-byte header {count: u32, version: u32 = 2}, then
for each blob a 64-byte record {sentinel: u32, data type: u32, size: u64, data offset: u64, padding bits: u64} and its
data; records and data start at multiples of 64. A program refers to a blob by the offset of its record.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.errors import BundleError
from lora_core.pte import Buffer, aligned

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ALIGNMENT = 64
VERSION = 2
SENTINEL = 0xDEADBEEF
FLOAT16, FLOAT32 = 1, 2
_HEADER = struct.Struct("<II56x")
_RECORD = struct.Struct("<IIQQQ32x")


@attrs.frozen(kw_only=True)
class BlobKey:
    """What makes two blobs the same: type, length, padding and every byte."""

    dtype: int
    size: int
    padding_bits: int
    sha256: str


@attrs.frozen(kw_only=True)
class MilBlob:
    """A blob found at `offset` (of its record) in a blob file."""

    offset: int
    dtype: int
    data_offset: int
    size: int
    padding_bits: int

    @property
    def end(self) -> int:
        """The first byte after the data."""
        return self.data_offset + self.size

    @property
    def next_offset(self) -> int:
        """Where the record of the next blob stands."""
        return aligned(self.end, ALIGNMENT)


def header(count: int) -> bytes:
    """Return the header of a blob file with `count` blobs."""
    return _HEADER.pack(count, VERSION)


def record(blob: MilBlob) -> bytes:
    """Return the 64-byte record that stands before a blob's data."""
    return _RECORD.pack(SENTINEL, blob.dtype, blob.size, blob.data_offset, blob.padding_bits)


def blob_at(buffer: Buffer, offset: int, *, where: str) -> MilBlob:
    """Read the record at `offset`; raises `BundleError` if there is none."""
    if offset % ALIGNMENT or offset < ALIGNMENT or offset + ALIGNMENT > len(buffer):
        raise BundleError(f"Weight offset {offset} lies outside the blob file of {len(buffer)} bytes", where=where)
    sentinel, dtype, size, data_offset, padding_bits = _RECORD.unpack(buffer[offset : offset + ALIGNMENT])
    if sentinel != SENTINEL:
        raise BundleError(f"There is no weight record at offset {offset}", where=where)
    blob = MilBlob(offset=offset, dtype=dtype, data_offset=data_offset, size=size, padding_bits=padding_bits)
    if data_offset < offset + ALIGNMENT or blob.end > len(buffer):
        raise BundleError(f"The weight at offset {offset} points outside the blob file", where=where)
    return blob


def key_of(buffer: Buffer, blob: MilBlob) -> BlobKey:
    """Hash a blob's stored bytes."""
    with memoryview(buffer) as view, view[blob.data_offset : blob.end] as data:
        digest = hashlib.sha256(data).hexdigest()
    return BlobKey(dtype=blob.dtype, size=blob.size, padding_bits=blob.padding_bits, sha256=digest)


def key_of_array(array: npt.NDArray[np.float16] | npt.NDArray[np.float32]) -> BlobKey:
    """Return the key that `array` has once it is stored."""
    dtype = FLOAT16 if array.dtype.itemsize == 2 else FLOAT32
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return BlobKey(dtype=dtype, size=array.nbytes, padding_bits=0, sha256=digest)


@contextmanager
def mapped(path: Path) -> Iterator[Buffer]:
    """Map a file for reading; an empty file is empty bytes."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            yield view
