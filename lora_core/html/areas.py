"""The picture of what is shared: one tile for each tensor group and who reads it, its area in bytes."""

from __future__ import annotations

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


def tiles(report: SharingReport) -> list[Tile]:
    """Return the tiles of `report`, the largest first."""
    stored = [area for area in report.areas if area.total]
    parts = [(area.group, *_readers(area, len(report.unique)), area.total, area.blobs) for area in stored[:_MOST]]
    if rest := stored[_MOST:]:
        size, blobs = sum(area.total for area in rest), sum(area.blobs for area in rest)
        parts.append((f"{len(rest)} smaller ones", "one adapter each, or a few", "own", size, blobs))
    parts.sort(key=lambda part: -part[3])
    boxes = squarify([float(part[3]) for part in parts], width=WIDTH, height=HEIGHT)
    return [
        Tile(label=label, readers=readers, kind=kind, size=size, blobs=blobs, box=box)
        for (label, readers, kind, size, blobs), box in zip(parts, boxes, strict=True)
    ]


def _readers(area: Area, owners: int) -> tuple[str, str]:
    if not area.owners:
        return "nobody", "unread"
    if len(area.owners) == 1:
        return (area.owners[0], "own" if owners > 1 else "shared")
    if len(area.owners) == owners:
        return "the base and every adapter", "shared"
    return f"{len(area.owners)} of {owners}", "shared"
