"""ExecuTorch programs (`.pte`) as plain data: read and written through the `flatc` that ExecuTorch ships.

A `.pte` is a flatbuffer (program.fbs) with an extended header behind its magic, then segments at multiples of 128 bytes
(ExecuTorch 1.5.1, exir/_serialize/_program.py). Everything here works without importing executorch or torch.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import struct
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import BundleError, PluginError, UnsupportedError

SEGMENT_ALIGNMENT = 128
_MAGIC = b"eh00"
_HEADER = struct.Struct("<4sIQQQ")
_MAX_ALIGNMENT = 16

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
    segment_base: int

    def segment(self, index: int) -> tuple[int, int]:
        """Return (offset in the file, size) of a segment; raises `BundleError`."""
        try:
            entry = self.program["segments"][index]
        except IndexError as error:
            raise BundleError(f"The program has no segment {index}", where=str(self.path)) from error
        start, size = self.segment_base + int(entry["offset"]), int(entry["size"])
        if start + size > self.path.stat().st_size:
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
    with path.open("rb") as file:
        head = file.read(8 + _HEADER.size)
        if len(head) < 8 + _HEADER.size or head[4:6] != b"ET" or head[8:12] != _MAGIC:
            raise BundleError("This is not an ExecuTorch program with segments", where=str(path))
        _, _, program_size, segment_base, _ = _HEADER.unpack(head[8:])
        file.seek(0)
        data = file.read(program_size)
    return StoredProgram(path=path, program=decode(data, where=str(path)), segment_base=segment_base)


def decode(data: bytes, *, where: str) -> Program:
    """Return the flatbuffer `data` as plain data; raises `BundleError`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "program.pte").write_bytes(data)
        options = ("--json", "--raw-binary", "--strict-json", "--defaults-json", "-o", name)
        _flatc(*options, str(_schema()), "--", str(folder / "program.pte"), where=where)
        return json.loads((folder / "program.json").read_bytes())  # type: ignore[no-any-return]


def encode(program: Program) -> bytes:
    """Return `program` as a flatbuffer without extended header."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "program.json").write_text(json.dumps(program))
        _flatc("--binary", "-o", name, str(_schema()), str(folder / "program.json"), where="program")
        return (folder / "program.pte").read_bytes()


def write(path: Path, program: Program, segments: Sequence[Segment]) -> str:
    """Write `program` with `segments` and return the file's SHA-256; `program["segments"]` is filled in here."""
    offsets, position = [], 0
    for segment in segments:
        position = _aligned(position)
        offsets.append(position)
        position += segment.size
    table = [{"offset": offset, "size": segment.size} for offset, segment in zip(offsets, segments, strict=True)]
    body = encode({**program, "segments": table})
    header_size = -(-_HEADER.size // _MAX_ALIGNMENT) * _MAX_ALIGNMENT
    program_size = header_size + len(body)
    base = _aligned(program_size)
    header = _HEADER.pack(_MAGIC, _HEADER.size, program_size, base, position).ljust(header_size, b"\0")
    root = int.from_bytes(body[:4], "little") + header_size
    digest = hashlib.sha256()
    with path.open("wb") as file:
        written = _emit(file, digest, [root.to_bytes(4, "little"), body[4:8], header, body[8:]])
        for offset, segment in zip(offsets, segments, strict=True):
            written += _emit(file, digest, [bytes(base + offset - written)])
            size = _emit(file, digest, segment.chunks)
            if size != segment.size:
                raise PluginError(f"A segment of {path.name} has {size} bytes where {segment.size} were announced")
            written += size
    return digest.hexdigest()


def _emit(file: Any, digest: Any, chunks: Chunks) -> int:
    size = 0
    for chunk in chunks:
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
    return size


def _aligned(position: int) -> int:
    return -(-position // SEGMENT_ALIGNMENT) * SEGMENT_ALIGNMENT


def _root() -> Path:
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        raise UnsupportedError("executorch is not installed", remedy="Install lora-core-coreml with its dependencies.")
    return Path(next(iter(found.submodule_search_locations)))


def _schema() -> Path:
    return _root() / "exir" / "_serialize" / "program.fbs"


def _flatc(*arguments: str, where: str) -> None:
    command = [str(_root() / "data" / "bin" / "flatc"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BundleError(f"The program cannot be read or written: {(done.stdout + done.stderr).strip()}", where=where)
