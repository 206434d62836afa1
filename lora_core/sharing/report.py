"""The sharing report: how many stored bytes several methods read, and how many only one does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import attrs

from lora_core.sharing.blobs import Blob


@attrs.frozen(kw_only=True)
class Row:
    """Stored bytes of one group or file: all, those that at least two methods read, those that one method reads."""

    name: str
    blobs: int
    total: int
    shared: int
    unique: int


@attrs.frozen(kw_only=True)
class Area:
    """Stored bytes of one group that exactly `methods` read (sorted; none: unread)."""

    group: str
    methods: tuple[str, ...]
    blobs: int
    total: int


@attrs.frozen(kw_only=True)
class Duplicate:
    """The same bytes stored more than once: `places` are (file, offset, key); `wasted` is what one copy would save.

    `methods` read any of the copies.
    """

    sha256: str
    size: int
    places: tuple[tuple[str, int, str], ...]
    methods: frozenset[str]

    @property
    def wasted(self) -> int:
        """Bytes beyond the first copy."""
        return self.size * (len(self.places) - 1)


@attrs.frozen(kw_only=True)
class SharingReport:
    """Blobs of a bundle, summed. Everything comes from stored bytes and their hashes, nothing from names or sizes.

    `total` are the bytes of all blobs; `shared` those that at least two methods read; `unique`, by method, those that
    only it reads; `unread` those that no method reads. They add up to `total`. `separate` is, by method, what an
    export of this method alone would store. `duplicates` is empty when every tensor is stored once. `areas` divide
    `total` by group and readers, the largest first.
    """

    total: int
    shared: int
    unique: Mapping[str, int]
    unread: int
    separate: Mapping[str, int]
    duplicates: tuple[Duplicate, ...]
    groups: tuple[Row, ...]
    files: tuple[Row, ...]
    areas: tuple[Area, ...] = ()

    @classmethod
    def from_blobs(cls, blobs: Iterable[Blob], methods: Sequence[str]) -> SharingReport:
        """Sum `blobs` for a bundle with `methods`; raises `ValueError` if a blob names another method."""
        stored = _by_place(blobs)
        unknown = {method for blob in stored for method in blob.methods} - set(methods)
        if unknown:
            raise ValueError(f"blobs name methods that the bundle does not have: {', '.join(sorted(unknown))}")
        return cls(
            total=sum(blob.size for blob in stored),
            shared=sum(blob.size for blob in stored if len(blob.methods) > 1),
            unique={
                method: sum(blob.size for blob in stored if blob.methods == frozenset({method})) for method in methods
            },
            unread=sum(blob.size for blob in stored if not blob.methods),
            separate={method: _distinct(blob for blob in stored if method in blob.methods) for method in methods},
            duplicates=_duplicates(stored),
            groups=_rows(stored, lambda blob: blob.group or "other"),
            files=_rows(stored, lambda blob: blob.file),
            areas=_areas(stored),
        )

    @property
    def separately(self) -> int:
        """Bytes of blobs that one separate export for each method would store together."""
        return sum(self.separate.values())

    @property
    def saved(self) -> int:
        """Bytes that sharing saves against separate exports."""
        return self.separately - (self.total - self.unread)

    def duplicates_of(self, methods: Iterable[str]) -> tuple[Duplicate, ...]:
        """Return the duplicates of which one of `methods` reads a copy: of the base's methods, bytes of the base."""
        wanted = set(methods)
        return tuple(duplicate for duplicate in self.duplicates if duplicate.methods & wanted)

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain data."""
        return {
            "total_bytes": self.total,
            "shared_bytes": self.shared,
            "unique_bytes": dict(self.unique),
            "unread_bytes": self.unread,
            "separate_bytes": dict(self.separate),
            "separate_total_bytes": self.separately,
            "saved_bytes": self.saved,
            "duplicates": [
                {
                    "sha256": duplicate.sha256,
                    "size": duplicate.size,
                    "wasted": duplicate.wasted,
                    "methods": sorted(duplicate.methods),
                    "places": [{"file": file, "offset": at, "key": key} for file, at, key in duplicate.places],
                }
                for duplicate in self.duplicates
            ],
            "groups": [attrs.asdict(row) for row in self.groups],
            "files": [attrs.asdict(row) for row in self.files],
            "areas": [attrs.asdict(area) for area in self.areas],
        }


def _by_place(blobs: Iterable[Blob]) -> list[Blob]:
    """Return the blobs with those of one place as one: a tensor may be stored under several names."""
    places: dict[tuple[str, int, int], Blob] = {}
    for blob in blobs:
        place = (blob.file, blob.offset, blob.size)
        known = places.get(place)
        places[place] = blob if known is None else attrs.evolve(known, methods=known.methods | blob.methods)
    return list(places.values())


def _distinct(blobs: Iterable[Blob]) -> int:
    return sum({blob.sha256: blob.size for blob in blobs}.values())


def _duplicates(blobs: Iterable[Blob]) -> tuple[Duplicate, ...]:
    copies: dict[str, dict[tuple[str, int, str], Blob]] = defaultdict(dict)
    for blob in blobs:
        if blob.size:
            copies[blob.sha256][blob.file, blob.offset, blob.key] = blob
    found = []
    for digest, places in copies.items():
        if len(places) > 1:
            methods = frozenset(method for blob in places.values() for method in blob.methods)
            size = next(iter(places.values())).size
            found.append(Duplicate(sha256=digest, size=size, places=tuple(sorted(places)), methods=methods))
    return tuple(sorted(found, key=lambda duplicate: (-duplicate.wasted, duplicate.sha256)))


def _areas(blobs: Iterable[Blob]) -> tuple[Area, ...]:
    grouped: dict[tuple[str, frozenset[str]], list[int]] = defaultdict(list)
    for blob in blobs:
        grouped[blob.group or "other", blob.methods].append(blob.size)
    areas = [
        Area(group=group, methods=tuple(sorted(methods)), blobs=len(sizes), total=sum(sizes))
        for (group, methods), sizes in grouped.items()
    ]
    return tuple(sorted(areas, key=lambda area: (-area.total, area.group, area.methods)))


def _rows(blobs: Iterable[Blob], name: Callable[[Blob], str]) -> tuple[Row, ...]:
    grouped: dict[str, list[Blob]] = defaultdict(list)
    for blob in blobs:
        grouped[name(blob)].append(blob)
    return tuple(
        Row(
            name=key,
            blobs=len(group),
            total=sum(blob.size for blob in group),
            shared=sum(blob.size for blob in group if len(blob.methods) > 1),
            unique=sum(blob.size for blob in group if len(blob.methods) == 1),
        )
        for key, group in sorted(grouped.items())
    )
