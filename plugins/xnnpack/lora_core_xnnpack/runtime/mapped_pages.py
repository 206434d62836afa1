"""Let go of the pages of a mapped file that loading a program has touched.

The runtime maps what portable kernels read of the foundation (the embedding table) and locks it in memory, once for
each program: `MmapDataLoader` does so by default, and Python cannot tell it otherwise (ExecuTorch 1.5.1). A table is
read a few rows at a time, so its pages are unlocked and dropped; those that are read come back from the file.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_READ_ONLY = "r--"


def drop_pages(file: Path) -> int:
    """Unlock and drop the pages of every read-only mapping of `file` in this process; return the bytes of the mappings.

    0 where the system does not say what is mapped, or cannot drop it. What the mappings read stays the same.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not _MAPS.exists():
        return 0
    libc = ctypes.CDLL(None)
    libc.munlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    dropped = 0
    for start, size in _mappings(file):
        # Locked pages cannot be dropped.
        if libc.munlock(start, size) == 0 and libc.madvise(start, size, advice) == 0:
            dropped += size
    return dropped


def return_freed() -> None:
    """Give memory that has been freed back to the system, where the C library keeps it for itself (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if _MAPS.exists() else None
    if trim is not None:
        trim(0)


def _mappings(file: Path) -> Iterator[tuple[int, int]]:
    name = str(file.resolve())
    for line in _MAPS.read_text().splitlines():
        span, mode, *_, path = line.split(maxsplit=5)
        # Only what was never written to: dropping a private copy would lose it.
        if path == name and mode.startswith(_READ_ONLY):
            start, end = (int(part, 16) for part in span.split("-"))
            yield start, end - start
