"""The order of names in which numbers count as numbers."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=1 << 14)  # adapters of one base name the same modules
def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that puts `layers.2` before `layers.10`."""
    parts = re.split(r"([0-9]+)", name)
    return tuple((1, int(part), part) if index % 2 else (0, 0, part) for index, part in enumerate(parts))
