"""The picture of what is shared: one tile for each tensor group and who reads it, its area in bytes."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from lora_core.html.treemap import Rectangle, squarify
from lora_core.sharing.report import Area, SharingReport

WIDTH, HEIGHT = 1000.0, 420.0
_MOST = 40
"""Tiles in the picture; the smallest beyond them become one, so that thousands of adapters stay readable."""
_LABEL_WIDTH, _LABEL_HEIGHT = 7.2, 34.0


@attrs.frozen(kw_only=True)
class Tile:
    """A tile of the picture: `kind` is `shared`, `own` or `unread`."""

    label: str
    readers: str
    kind: str
    size: int
    blobs: int
    box: Rectangle

    @property
    def shows_label(self) -> bool:
        """True if there is room for the label and a line below it."""
        return self.box.width > _LABEL_WIDTH * len(self.label) + 16 and self.box.height > _LABEL_HEIGHT


def tiles(report: SharingReport, methods: Sequence[str]) -> list[Tile]:
    """Return the tiles of `report` for a bundle with `methods`, the largest first."""
    stored = [area for area in report.areas if area.total]
    parts = [(area.group, *_readers(area, methods), area.total, area.blobs) for area in stored[:_MOST]]
    if rest := stored[_MOST:]:
        size, blobs = sum(area.total for area in rest), sum(area.blobs for area in rest)
        parts.append((f"{len(rest)} smaller ones", "one method each, or a few", "own", size, blobs))
    parts.sort(key=lambda part: -part[3])
    boxes = squarify([float(part[3]) for part in parts], width=WIDTH, height=HEIGHT)
    return [
        Tile(label=label, readers=readers, kind=kind, size=size, blobs=blobs, box=box)
        for (label, readers, kind, size, blobs), box in zip(parts, boxes, strict=True)
    ]


def _readers(area: Area, methods: Sequence[str]) -> tuple[str, str]:
    if not area.methods:
        return "no method", "unread"
    if len(area.methods) == 1:
        return (area.methods[0], "own" if len(methods) > 1 else "shared")
    if len(area.methods) == len(methods):
        return f"all {len(methods)} methods", "shared"
    return f"{len(area.methods)} of {len(methods)} methods", "shared"
