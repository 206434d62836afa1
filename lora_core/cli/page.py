"""One self-contained HTML page about a bundle: what is shared and what is not, by area."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.cli.table import size

if TYPE_CHECKING:
    from lora_core.pipeline.inspect import InspectReport
    from lora_core.sharing.report import Row

WIDTH, HEIGHT = 1000.0, 260.0
TEMPLATE = Path(__file__).with_name("page.html.jinja")


@attrs.frozen(kw_only=True)
class Area:
    """A rectangle of the picture whose area is its bytes; `kind` is `shared`, `unique` or `unread`."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    group: str
    title: str


def render(report: InspectReport) -> str:
    """Return the page for `report`; it refers to nothing outside itself."""
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["size"] = size
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    return template.render(
        report=report,
        manifest=report.bundle.manifest,
        sharing=report.sharing,
        areas=areas(report.sharing.groups),
        width=WIDTH,
        height=HEIGHT,
    )


def areas(groups: Sequence[Row]) -> list[Area]:
    """Lay groups out side by side, the largest first, each split into what is shared, of one method, and unread."""
    total = sum(group.total for group in groups)
    found: list[Area] = []
    x = 0.0
    for group in sorted(groups, key=lambda each: -each.total):
        width = WIDTH * group.total / total if total else 0.0
        parts = {"shared": group.shared, "unique": group.unique, "unread": group.total - group.shared - group.unique}
        y = 0.0
        for kind, count in parts.items():
            if count:
                height = HEIGHT * count / group.total
                title = f"{group.name}: {size(count)} {kind}"
                found.append(Area(x=x, y=y, width=width, height=height, kind=kind, group=group.name, title=title))
                y += height
        x += width
    return found
