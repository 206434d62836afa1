"""What this process holds in memory of a mapped file."""

from __future__ import annotations

from pathlib import Path


def resident(file: Path) -> dict[str, int]:
    """Return the bytes of all mappings of `file`: their size, what is in memory, and what is locked there."""
    found = {"Size": 0, "Rss": 0, "Locked": 0}
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if not line.endswith("kB") and "-" in name.split()[0]:
            ours = line.endswith(str(file.resolve()))
        elif ours and name in found:
            found[name] += int(value.split()[0]) * 1024
    return found
