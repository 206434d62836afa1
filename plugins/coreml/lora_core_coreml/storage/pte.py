"""ExecuTorch programs (`.pte`) as plain data: read and written through the `flatc` that ExecuTorch ships.

A `.pte` is a flatbuffer (program.fbs) with an extended header behind its magic, then segments at multiples of 128 bytes
(ExecuTorch 1.5.1, exir/_serialize/_program.py). Everything here works without importing executorch or torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import attrs

from lora_core.errors import BundleError, PluginError
from lora_core.intake.files import open_regular
from lora_core.intake.limits import TABLE, raised
from lora_core.pte import ContainerHeader, container_front, padding_before, segment_offsets
from lora_core_coreml.storage import flatc

_HEAD = 64
"""Bytes from the beginning of a file that hold the container's header."""

Program = dict[str, Any]
Chunks = Iterable[bytes | memoryview]


@attrs.frozen(kw_only=True)
class Segment:
    """A segment to write: its exact size and its bytes, made when they are written."""

    size: int
    chunks: Chunks


@attrs.frozen(kw_only=True)
class StoredProgram:
    """A program read from a file: the flatbuffer as plain data, and where its segments begin."""

    path: Path
    program: Program
    program_size: int
    segment_base: int

    def segment(self, index: int) -> tuple[int, int]:
        """Return (offset in the file, size) of a segment; raises `BundleError`."""
        try:
            entry = self.program["segments"][index]
        except IndexError as error:
            raise BundleError(f"The program has no segment {index}", where=str(self.path)) from error
        start, size = self.segment_base + int(entry["offset"]), int(entry["size"])
        if start < 0 or size < 0 or start + size > self.path.stat().st_size:
            raise BundleError(f"Segment {index} lies behind the end of the program", where=str(self.path))
        return start, size

    def read_segment(self, index: int) -> bytes:
        """Read a segment."""
        start, size = self.segment(index)
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(size)


def read(path: Path) -> StoredProgram:
    """Read the program of a `.pte` file without its segments; raises `BundleError`."""
    with open_regular(path, BundleError) as file:
        try:
            header = ContainerHeader.read(file.read(_HEAD))
            header.require_all(path.stat().st_size)
        except ValueError as error:
            raise BundleError(f"This is not an ExecuTorch program with segments: {error}", where=str(path)) from error
        if header.program_size > path.stat().st_size or header.program_size > raised(TABLE):
            raise BundleError(f"The program says that it has {header.program_size} bytes", where=str(path))
        file.seek(0)
        data = file.read(header.program_size)
    return StoredProgram(
        path=path,
        program=decode(data, where=str(path)),
        program_size=header.program_size,
        segment_base=header.segment_base,
    )


def parts(stored: StoredProgram) -> Iterator[tuple[int, int, str]]:
    """Yield (offset, size, word) of the flatbuffer and of the segments that plans refer to; raises `BundleError`."""
    program = stored.program
    yield 0, stored.program_size, "program"
    delegates = [delegate["processed"] for plan in program["execution_plan"] for delegate in plan["delegates"]]
    for index in sorted({processed["index"] for processed in delegates if processed["location"] == "SEGMENT"}):
        yield (*stored.segment(index), "delegate")
    constants = program.get("constant_segment") or {}
    if constants.get("offsets"):
        yield (*stored.segment(constants["segment_index"]), "constants")


def decode(data: bytes, *, where: str) -> Program:
    """Return the flatbuffer `data` as plain data; raises `BundleError`."""
    return flatc.decode(flatc.PROGRAM, data, where=where)


def encode(program: Program) -> bytes:
    """Return `program` as a flatbuffer without extended header."""
    return flatc.encode(flatc.PROGRAM, program)


def write(path: Path, program: Program, segments: Sequence[Segment]) -> str:
    """Write `program` with `segments` and return the file's SHA-256; `program["segments"]` is filled in here."""
    sizes = [segment.size for segment in segments]
    spans = zip(segment_offsets(sizes), sizes, strict=True)
    table = [{"offset": offset, "size": size} for offset, size in spans]
    digest = hashlib.sha256()
    with path.open("wb") as file:
        _emit(file, digest, [container_front(encode({**program, "segments": table}), sizes)])
        for segment, padding in zip(segments, padding_before(sizes), strict=True):
            _emit(file, digest, [bytes(padding)])
            size = _emit(file, digest, segment.chunks)
            if size != segment.size:
                raise PluginError(f"A segment of {path.name} has {size} bytes where {segment.size} were announced")
    return digest.hexdigest()


def _emit(file: BinaryIO, digest: hashlib._Hash, chunks: Chunks) -> int:
    size = 0
    for chunk in chunks:
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return size
