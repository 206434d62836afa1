"""Packed weights kept in a file, so that a further process maps them instead of packing them again.

The runtime writes and reads the file itself (its option `packed_cache_path`); each entry is found by the SHA-256 of the
weights and the seed of the kernel they were packed for. What this adds is the proof that the file is whole: its digest
is written beside it when the session that made it closes, with what the system says of the file then. While that is the
same, nobody has written to the file; a file that was copied or touched is hashed, and one without a proof, or with
another digest, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO, Literal

import attrs

from lora_core.errors import StorageError

AUTOMATIC = "auto"
_SCHEMA = 2
_SMALL = 64 << 20  # bytes of a foundation that is packed in a moment
_ROOM = 2  # times the foundation's bytes: to write into a mapped file on a full disk ends the process
_UNUSED_SECONDS = 30 * 24 * 3600
_CPU_INFO = Path("/proc/cpuinfo")
_MAPS = Path("/proc/self/maps")


@attrs.frozen(kw_only=True)
class PackedState:
    """What became of the packed file.

    `proven`: it was whole and programs map it; `written`: this session is making it; `unused`: see `reason`.
    """

    state: Literal["proven", "written", "unused"]
    path: Path
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.state}: {self.reason or self.path}"


class PackedCache:
    """The packed file of one foundation in a directory, held while a session uses it."""

    def __init__(self, directory: Path, foundation: str, size: int) -> None:
        """Check the file for a foundation of `size` bytes; raises `StorageError` if the directory cannot be used."""
        self._needed = _ROOM * size
        self._inode: int | None = None
        name = packed_name(foundation)
        self._file = directory / f"{name}.packed"
        self._proof = directory / f"{name}.json"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = (directory / f"{name}.lock").open("ab")
            self.state = self._open()
        except OSError as error:
            raise StorageError(f"Packed weights cannot be kept: {error}", where=str(directory)) from error

    @property
    def path(self) -> Path | None:
        """The file to give to the runtime; None if it must not be used."""
        return None if self.state.state == "unused" else self._file

    def confirm(self) -> None:
        """Record whether the runtime took the file, after a program was loaded with it."""
        if self.path is None or self._inode is not None:
            return
        if self._is_mapped():
            self._inode = self._file.stat().st_ino
        else:
            self.give_up("the runtime did not map it: another process may hold it")

    def give_up(self, reason: str) -> None:
        """Do not use the file any further."""
        self.state = PackedState(state="unused", path=self._file, reason=reason)

    def close(self) -> None:
        """Prove a file that this session made, or one that it shares with the session that did and that has closed.

        All its programs must be closed: nothing is written any more once no session of this process maps the file.
        """
        mine = self._file.is_file() and self._file.stat().st_ino == self._inode
        if self.state.state == "written" and mine and not self._is_mapped() and _locked(self._lock, exclusive=True):
            self._file.chmod(0o444)  # where the runtime cannot write it, it does not lock it against other readers
            self._prove(_digest(self._file))
        self._lock.close()

    def _open(self) -> PackedState:
        if not _MAPS.exists():
            return PackedState(state="unused", path=self._file, reason="this system does not say what is mapped")
        if _locked(self._lock, exclusive=True):
            if self._is_proven():
                _locked(self._lock, exclusive=False)
                return PackedState(state="proven", path=self._file)
            if shutil.disk_usage(self._file.parent).free < self._needed:
                return PackedState(state="unused", path=self._file, reason="the disk has no room for it")
            self._proof.unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)  # not truncated: a process that maps it keeps its pages
            return PackedState(state="written", path=self._file)
        if _locked(self._lock, exclusive=False) and self._is_proven():
            return PackedState(state="proven", path=self._file)
        if self._is_mapped():
            return PackedState(state="written", path=self._file)
        return PackedState(state="unused", path=self._file, reason="another session is making it")

    def _is_mapped(self) -> bool:
        return str(self._file) in _MAPS.read_text()

    def _is_proven(self) -> bool:
        try:
            proof = json.loads(self._proof.read_text())
            if proof["schema_version"] != _SCHEMA:
                return False
            if proof["stamp"] != _stamp(self._file):
                if _digest(self._file) != proof["sha256"]:
                    return False
                self._prove(proof["sha256"])
            os.utime(self._proof)  # when it was used last
        except (OSError, ValueError, TypeError, KeyError):
            return False
        return True

    def _prove(self, digest: str) -> None:
        temporary = self._proof.with_suffix(".new")
        temporary.write_text(json.dumps({"schema_version": _SCHEMA, "sha256": digest, "stamp": _stamp(self._file)}))
        temporary.replace(self._proof)


def packed_automatically(foundation: str, size: int) -> tuple[PackedCache | None, str]:
    """Return the packed file in the user's cache for a foundation of `size` bytes, or None and why there is none.

    Packed files there that no session has used for 30 days are removed.
    """
    if size < _SMALL:
        return None, "the base is small"
    directory = default_directory()
    try:
        cache = PackedCache(directory, foundation, size)
    except StorageError as error:
        return None, error.problems[0].what
    _remove_unused(directory)
    return cache, ""


def _remove_unused(directory: Path) -> None:
    oldest = time.time() - _UNUSED_SECONDS
    for proof in directory.glob("*.json"):
        with contextlib.suppress(OSError):
            if proof.stat().st_mtime < oldest:
                proof.unlink()
                proof.with_suffix(".packed").unlink(missing_ok=True)  # who maps it keeps its pages


def packed_name(foundation: str) -> str:
    """Return the name under which packed weights are kept: they depend on the foundation, ExecuTorch and the CPU."""
    parts = (foundation, version("executorch"), platform.machine(), platform.system(), _cpu())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _cpu() -> str:
    """Return what XNNPACK chooses its kernels by, as far as the system tells."""
    with contextlib.suppress(OSError):
        lines = _CPU_INFO.read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
    return platform.processor()


def _stamp(path: Path) -> list[int]:
    """Return what changes when somebody writes to a file, replaces or copies it."""
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _locked(file: IO[bytes], *, exclusive: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows, where the runtime keeps no packed file either
        return False
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def default_directory() -> Path:
    """Return the directory for packed weights of this user."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lora-core" / "packed"
