"""The container of an ExecuTorch program (`.pte`): a flatbuffer with a header inside, then aligned segments.

Layout of ExecuTorch 1.5.1 (`exir/_serialize/_program.py`: `_ExtendedHeader`, `serialize_pte_binary`): the root offset
and the file identifier of the flatbuffer (8 bytes), the header, the rest of the flatbuffer, zero bytes up to the
segment base, and the segments, each at a multiple of 128 bytes behind it. What stands in the flatbuffer is its readers'
business; nothing here needs ExecuTorch.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Sequence

import attrs

Buffer = bytes | bytearray | memoryview | mmap.mmap

SEGMENT_ALIGNMENT = 128
HEADER_LENGTH = 32
"""Bytes that the header takes: its 32, rounded up to the largest alignment that `program.fbs` asks for, 16."""
_MAGIC = b"eh00"
_HEADER = struct.Struct("<4sIQQQ")  # magic, length, size of the program, base and size of the segments
_BEFORE = 8


@attrs.frozen(kw_only=True)
class ContainerHeader:
    """Where things lie, in bytes from the file's start: the program ends at `program_size`, segments begin at
    `segment_base` and take `segment_size`.
    """

    program_size: int
    segment_base: int
    segment_size: int

    @classmethod
    def read(cls, data: Buffer) -> ContainerHeader:
        """Read the header of a program file, of which `data` holds at least the first 40 bytes.

        Raises `ValueError` if it is no ExecuTorch program with segments.
        """
        if len(data) < _BEFORE + _HEADER.size:
            raise ValueError("it is too short for an ExecuTorch program")
        magic, _, program_size, base, size = _HEADER.unpack_from(data, _BEFORE)
        if bytes(data[4:6]) != b"ET" or magic != _MAGIC:
            raise ValueError("it has no ExecuTorch header")
        return cls(program_size=program_size, segment_base=base, segment_size=size)

    def require_all(self, size: int) -> None:
        """Raise `ValueError` if a file of `size` bytes goes on behind its segments: nobody would count those bytes."""
        end = max(self.program_size, self.segment_base + self.segment_size)
        if size >= end + SEGMENT_ALIGNMENT:
            raise ValueError(f"it has {size - end} bytes behind its last segment")


def aligned(offset: int, alignment: int = SEGMENT_ALIGNMENT) -> int:
    """Return `offset` rounded up to `alignment`."""
    return -(-offset // alignment) * alignment


def segment_offsets(sizes: Sequence[int]) -> list[int]:
    """Return the offset of each segment behind the segment base, for segments of `sizes` laid one after another."""
    offsets: list[int] = []
    end = 0
    for size in sizes:
        offsets.append(aligned(end))
        end = offsets[-1] + size
    return offsets


def container_front(flatbuffer: Buffer, sizes: Sequence[int], *, header_length: int = HEADER_LENGTH) -> bytes:
    """Return everything before the segments: `flatbuffer` with the header inside, and zero bytes up to the base.

    `sizes` are those of the segments, which the caller writes at `segment_offsets` behind it.
    """
    program_size = header_length + len(flatbuffer)
    base = aligned(program_size)
    offsets = segment_offsets(sizes)
    total = offsets[-1] + sizes[-1] if sizes else 0
    header = _HEADER.pack(_MAGIC, _HEADER.size, program_size, base, total).ljust(header_length, b"\0")
    root = struct.pack("<I", struct.unpack_from("<I", flatbuffer)[0] + header_length)
    return b"".join((root, flatbuffer[4:8], header, flatbuffer[8:])).ljust(base, b"\0")


def padding_before(sizes: Sequence[int]) -> Iterator[int]:
    """Yield for each segment of `sizes` how many zero bytes stand between it and the one before it."""
    end = 0
    for size, offset in zip(sizes, segment_offsets(sizes), strict=True):
        yield offset - end
        end = offset + size


def container_parts(front: Buffer, segments: Sequence[Buffer]) -> list[Buffer]:
    """Return a container in order: `front`, then `segments` with the zero bytes that align each."""
    parts: list[Buffer] = [front]
    for segment, padding in zip(segments, padding_before([len(each) for each in segments]), strict=True):
        parts += [bytes(padding), segment]
    return parts
