"""Amounts as people read them."""

from __future__ import annotations


def size(count: float) -> str:
    """Return a number of bytes as `512 B`, `1.5 kB`, `2.0 GB` (powers of 1000)."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
