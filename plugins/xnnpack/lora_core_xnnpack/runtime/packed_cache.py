"""Packed weights kept in a file, so that a further process maps them instead of packing them again.

The runtime writes and reads the file itself (its option `packed_cache_path`); each entry is found by the SHA-256 of the
weights and the seed of the kernel they were packed for. What this adds is the proof that the file is whole: its digest
is written beside it when the session that made it closes, and a file without a digest, or with another, is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import IO, Literal

import attrs

from lora_core.errors import StorageError

_SCHEMA = 1
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

    def __init__(self, directory: Path, foundation: str) -> None:
        """Check the file; raises `StorageError` if the directory cannot be used."""
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
        if self.path is not None and str(self._file) not in _MAPS.read_text():
            self.give_up("the runtime did not map it: another process may hold it")

    def give_up(self, reason: str) -> None:
        """Do not use the file any further."""
        self.state = PackedState(state="unused", path=self._file, reason=reason)

    def close(self) -> None:
        """Prove a file that this session made. All programs must be closed, so that nothing is written any more."""
        if self.state.state == "written" and self._file.is_file():
            proof = {"schema_version": _SCHEMA, "sha256": _digest(self._file), "size": self._file.stat().st_size}
            temporary = self._proof.with_suffix(".new")
            temporary.write_text(json.dumps(proof))
            self._file.chmod(0o444)  # where the runtime cannot write it, it does not lock it against other readers
            temporary.replace(self._proof)
        self._lock.close()

    def _open(self) -> PackedState:
        if not _MAPS.exists():
            return PackedState(state="unused", path=self._file, reason="this system does not say what is mapped")
        if _locked(self._lock, exclusive=True):
            if self._is_proven():
                _locked(self._lock, exclusive=False)
                return PackedState(state="proven", path=self._file)
            self._proof.unlink(missing_ok=True)
            self._file.unlink(missing_ok=True)  # not truncated: a process that maps it keeps its pages
            return PackedState(state="written", path=self._file)
        if _locked(self._lock, exclusive=False) and self._is_proven():
            return PackedState(state="proven", path=self._file)
        return PackedState(state="unused", path=self._file, reason="another session is making it")

    def _is_proven(self) -> bool:
        try:
            proof = json.loads(self._proof.read_text())
            size = self._file.stat().st_size
            expected = {"schema_version": _SCHEMA, "sha256": proof.get("sha256"), "size": size}
            return bool(proof == expected and _digest(self._file) == proof["sha256"])
        except (OSError, ValueError, AttributeError):
            return False


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
