"""Rectangles whose areas are in proportion to values: a squarified treemap (Bruls, Huizing and van Wijk, 2000)."""

from __future__ import annotations

from collections.abc import Sequence

import attrs


@attrs.frozen(kw_only=True)
class Rectangle:
    """A rectangle, its origin at the top left."""

    x: float
    y: float
    width: float
    height: float


def squarify(values: Sequence[float], *, width: float, height: float) -> list[Rectangle]:
    """Return a rectangle for each of `values` that together fill `width` by `height`, as square as they can be.

    `values` are positive, the largest first.
    """
    scale = width * height / sum(values) if values else 0.0
    areas = [value * scale for value in values]
    free = Rectangle(x=0.0, y=0.0, width=width, height=height)
    found: list[Rectangle] = []
    start = 0
    while start < len(areas):
        side = min(free.width, free.height)
        end = start + 1
        while end < len(areas) and _worst(areas[start : end + 1], side) <= _worst(areas[start:end], side):
            end += 1
        row, free = _lay(areas[start:end], free)
        found += row
        start = end
    return found


def _worst(areas: Sequence[float], side: float) -> float:
    """Return the largest ratio of sides if `areas` share a row along `side`."""
    thickness = sum(areas) / side
    return max(max(thickness**2 / area, area / thickness**2) for area in areas)


def _lay(areas: Sequence[float], free: Rectangle) -> tuple[list[Rectangle], Rectangle]:
    """Lay `areas` along the shorter side of `free`; return them and what is left."""
    total = sum(areas)
    row: list[Rectangle] = []
    if free.width >= free.height:
        thickness, y = total / free.height, free.y
        for area in areas:
            row.append(Rectangle(x=free.x, y=y, width=thickness, height=area / thickness))
            y += area / thickness
        rest = attrs.evolve(free, x=free.x + thickness, width=max(free.width - thickness, 0.0))
    else:
        thickness, x = total / free.width, free.x
        for area in areas:
            row.append(Rectangle(x=x, y=free.y, width=area / thickness, height=thickness))
            x += area / thickness
        rest = attrs.evolve(free, y=free.y + thickness, height=max(free.height - thickness, 0.0))
    return row, rest
