"""How much memory this process uses, told apart by where it comes from."""

from __future__ import annotations

import sys
from pathlib import Path

import attrs

SMAPS_ROLLUP = Path("/proc/self/smaps_rollup")
STATUS = Path("/proc/self/status")


@attrs.frozen(kw_only=True)
class Memory:
    """Bytes of this process in physical memory.

    `resident` counts everything, `anonymous` what exists nowhere but in memory (heap, packed weights, caches), and
    `file_backed` what the system can drop and read again from a file: a memory-mapped foundation is file-backed.
    `resident` and `file_backed` count a page once for each mapping: a foundation mapped by three programs counts three
    times. `proportional` counts it once (and pages that processes share, in parts): what the process really takes.
    Where the system tells only a total, `detailed` is False, all are that total and `file_backed` is 0.
    """

    resident: int
    anonymous: int
    file_backed: int
    proportional: int
    detailed: bool = True


def measure() -> Memory:
    """Return the memory of this process now (Linux), or its peak (elsewhere: the standard library has no more)."""
    try:
        return parse_smaps_rollup(SMAPS_ROLLUP.read_text())
    except OSError:
        peak = _peak_resident()
        return Memory(resident=peak, anonymous=peak, file_backed=0, proportional=peak, detailed=False)


def count() -> Memory:
    """Return what the system counts as it goes, at once: exact to some pages, and with 0 for `proportional` (Linux).

    `measure` walks all pages of the process, which takes milliseconds where a base is mapped.
    """
    try:
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines() if line.endswith(" kB"))
        anonymous, file, shared = (int(fields[f"Rss{name}"].split()[0]) * 1024 for name in ("Anon", "File", "Shmem"))
    except (OSError, KeyError, ValueError):
        return measure()
    return Memory(resident=anonymous + file + shared, anonymous=anonymous, file_backed=file + shared, proportional=0)


def parse_smaps_rollup(text: str) -> Memory:
    """Read the text of `/proc/PID/smaps_rollup` (proc_pid_smaps(5)); its figures are in kB of 1024 bytes."""
    fields = dict(line.split(":", 1) for line in text.splitlines() if line.endswith(" kB"))
    resident, anonymous, proportional = (int(fields[name].split()[0]) * 1024 for name in ("Rss", "Anonymous", "Pss"))
    return Memory(resident=resident, anonymous=anonymous, file_backed=resident - anonymous, proportional=proportional)


def _peak_resident() -> int:
    try:
        import resource
    except ImportError:  # Windows: no figure without a further dependency
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
