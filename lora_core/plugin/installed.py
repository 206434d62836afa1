"""Entry points of what is installed, read as `importlib.metadata` reads them.

Importing that takes longer than all the rest of finding plugins: it brings mail, sockets and archives. So here are the
directories that Python imports from, and the two files of a distribution that matter; whatever else a distribution can
be found in (archives, eggs, finders of others) the standard library is asked about.

Formats: https://packaging.python.org/en/latest/specifications/entry-points/ and .../core-metadata/.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_KINDS = (".dist-info", ".egg-info")
_MODULE = re.compile(r"\w+(\.\w+)*", re.ASCII)


@attrs.frozen(kw_only=True)
class InstalledPoint:
    """An entry point, and its distribution with version."""

    name: str
    value: str
    distribution: str

    def load(self) -> Any:
        """Import what it names."""
        if _MODULE.fullmatch(self.value):
            return import_module(self.value)
        from importlib.metadata import EntryPoint

        return EntryPoint(name=self.name, value=self.value, group="").load()


def installed_points(group: str) -> Sequence[InstalledPoint]:
    """Return the entry points of `group`, of each distribution those of the first place that it is found in."""
    if any(_beyond(place) for place in sys.path) or any(map(_finds, sys.meta_path)):
        from importlib.metadata import entry_points

        return [told(point) for point in entry_points(group=group)]
    return list(_points(group))


def told(point: EntryPoint) -> InstalledPoint:
    """Return an entry point of the standard library as one of these."""
    distribution = "an unknown distribution"
    if point.dist is not None:
        metadata = point.dist.metadata  # read anew by each of `name` and `version`
        distribution = f"{metadata['Name']} {metadata['Version']}"
    return InstalledPoint(name=point.name, value=point.value, distribution=distribution)


def _beyond(place: str) -> bool:
    """Say whether distributions may be found at `place` otherwise than as folders in it."""
    return place.lower().endswith(".egg") or (bool(place) and os.path.isfile(place))  # noqa: PTH113 - hundreds


def _finds(finder: Any) -> bool:
    return finder is not PathFinder and hasattr(finder, "find_distributions")


def _points(group: str) -> Iterator[InstalledPoint]:
    seen: set[str] = set()
    for place in sys.path:
        try:
            names = os.listdir(place or ".")  # noqa: PTH208 - its order is that of the standard library
        except OSError:
            continue
        for name in names:
            if not name.lower().endswith(_KINDS):
                continue
            known = re.sub(r"[-_.]+", "_", name[: -len(".dist-info")].partition("-")[0]).lower()
            if known not in seen:
                seen.add(known)
                yield from _points_of(os.path.join(place, name), group)  # noqa: PTH118 - hundreds


def _points_of(info: str, group: str) -> Iterator[InstalledPoint]:
    lines = _lines(info, "entry_points.txt")
    if f"[{group}]" not in map(str.strip, lines):
        return
    section = None
    for line in map(str.strip, lines):
        if line.startswith("[") and line.endswith("]"):
            section = line[1:-1]
        elif section == group and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield InstalledPoint(name=name.strip(), value=value.strip(), distribution=_distribution(info))


def _distribution(info: str) -> str:
    fields: dict[str, str] = {}
    for line in _lines(info, "METADATA") or _lines(info, "PKG-INFO"):
        if not line:  # the description follows
            break
        field, _, value = line.partition(":")
        fields.setdefault(field.lower(), value.strip())
    return f"{fields.get('name')} {fields.get('version')}"


def _lines(info: str, file: str) -> list[str]:
    try:
        with open(os.path.join(info, file), encoding="utf-8") as opened:  # noqa: PTH118, PTH123 - hundreds
            return opened.read().splitlines()
    except (OSError, ValueError):  # not there, or no text: another distribution's affair
        return []
