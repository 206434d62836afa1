"""The sharing report: how many stored bytes several owners read, and how many only one does.

An owner is the base or an adapter, however many methods it has: decode and prefill of one adapter are one export, and
what both read is no saving.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import attrs

from lora_core.bundle.bundle import Method
from lora_core.sharing.blobs import Blob


@attrs.frozen(kw_only=True)
class Row:
    """Stored bytes of one group or file: all, those that at least two owners read, those that one owner reads."""

    name: str
    blobs: int
    total: int
    shared: int
    unique: int


@attrs.frozen(kw_only=True)
class Area:
    """Stored bytes of one group that exactly `owners` read (sorted; none: unread)."""

    group: str
    owners: tuple[str, ...]
    blobs: int
    total: int


@attrs.frozen(kw_only=True)
class Duplicate:
    """The same bytes stored more than once: `places` are (file, offset, key); `wasted` is what one copy would save.

    `owners` read any of the copies.
    """

    sha256: str
    size: int
    places: tuple[tuple[str, int, str], ...]
    owners: frozenset[str]

    @property
    def wasted(self) -> int:
        """Bytes beyond the first copy."""
        return self.size * (len(self.places) - 1)


@attrs.frozen(kw_only=True)
class SharingReport:
    """Blobs of a bundle, summed. Everything comes from stored bytes and their hashes, nothing from names or sizes.

    Owners are called as `owners_of` says. `total` are the bytes of all blobs; `shared` those that at least two owners
    read; `unique`, by owner, those that only it reads; `unread` those that none reads. They add up to `total`.
    `separate` is, by owner, what an export of it alone would store. `duplicates` is empty when every tensor is stored
    once. `areas` divide `total` by group and readers, the largest first.
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
    def from_blobs(cls, blobs: Iterable[Blob], owners: Mapping[str, str]) -> SharingReport:
        """Sum `blobs` for a bundle whose methods have `owners`; raises `ValueError` if a blob names another method."""
        known = _Owners(owners)
        stored = [known.of(blob) for blob in _by_place(blobs)]
        names = tuple(dict.fromkeys(owners.values()))
        return cls(
            total=sum(blob.size for blob, _ in stored),
            shared=sum(blob.size for blob, readers in stored if len(readers) > 1),
            unique=_by_owner(names, ((blob, readers) for blob, readers in stored if len(readers) == 1)),
            unread=sum(blob.size for blob, readers in stored if not readers),
            separate=_by_owner(names, _once_each(stored)),
            duplicates=_duplicates(stored),
            groups=_rows(stored, lambda blob: blob.group or "other"),
            files=_rows(stored, lambda blob: blob.file),
            areas=_areas(stored),
        )

    @property
    def separately(self) -> int:
        """Bytes of blobs that one separate export for each owner would store together."""
        return sum(self.separate.values())

    @property
    def saved(self) -> int:
        """Bytes that sharing saves against separate exports."""
        return self.separately - (self.total - self.unread)

    def duplicates_of(self, owner: str) -> tuple[Duplicate, ...]:
        """Return the duplicates of which `owner` reads a copy: of the base, bytes of the base."""
        return tuple(duplicate for duplicate in self.duplicates if owner in duplicate.owners)

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
                    "owners": sorted(duplicate.owners),
                    "places": [{"file": file, "offset": at, "key": key} for file, at, key in duplicate.places],
                }
                for duplicate in self.duplicates
            ],
            "groups": [attrs.asdict(row) for row in self.groups],
            "files": [attrs.asdict(row) for row in self.files],
            "areas": [attrs.asdict(area) for area in self.areas],
        }


def owners_of(methods: Iterable[Method]) -> dict[str, str]:
    """Return for each method whose it is: an adapter's name, or for the base that of its first method (`forward`)."""
    methods = list(methods)
    base = next((method.name for method in methods if method.adapter is None), "")
    return {method.name: base if method.adapter is None else method.adapter for method in methods}


_Owned = tuple[Blob, frozenset[str]]


class _Owners:
    """Who reads blobs: each set of methods is looked at once, however many blobs it reads."""

    def __init__(self, owners: Mapping[str, str]) -> None:
        self._owners = owners
        self._known: dict[frozenset[str], frozenset[str]] = {}

    def of(self, blob: Blob) -> _Owned:
        """Return `blob` with its readers; raises `ValueError` for a method that the bundle does not have."""
        methods = frozenset(blob.methods)
        readers = self._known.get(methods)
        if readers is None:
            unknown = sorted(method for method in methods if method not in self._owners)
            if unknown:
                raise ValueError(f"blobs name methods that the bundle does not have: {', '.join(unknown)}")
            readers = self._known[methods] = frozenset(self._owners[method] for method in methods)
        return blob, readers


def _by_owner(names: Sequence[str], stored: Iterable[tuple[Blob, Set[str]]]) -> dict[str, int]:
    """Return the bytes that each of `names` reads, equal ones each time."""
    sizes: dict[frozenset[str], int] = defaultdict(int)
    for blob, readers in stored:
        sizes[frozenset(readers)] += blob.size
    total = dict.fromkeys(names, 0)
    for readers, size in sizes.items():
        for owner in readers:
            total[owner] += size
    return total


def _once_each(stored: Iterable[_Owned]) -> Iterable[tuple[Blob, Set[str]]]:
    """Return the blobs with equal ones as one, read by all readers of any."""
    contents: dict[str, tuple[Blob, Set[str]]] = {}
    for blob, readers in stored:
        known = contents.get(blob.sha256)
        if known is None:
            contents[blob.sha256] = blob, readers
        elif isinstance(known[1], set):
            known[1].update(readers)
        elif not readers <= known[1]:
            contents[blob.sha256] = blob, {*known[1], *readers}
    return contents.values()


def _by_place(blobs: Iterable[Blob]) -> list[Blob]:
    """Return the blobs with those of one place as one: a tensor may be stored under several names."""
    places: dict[tuple[str, int, int], Blob] = {}
    for blob in blobs:
        place = (blob.file, blob.offset, blob.size)
        known = places.get(place)
        places[place] = blob if known is None else attrs.evolve(known, methods=known.methods | blob.methods)
    return list(places.values())


def _duplicates(stored: Iterable[_Owned]) -> tuple[Duplicate, ...]:
    copies: dict[str, dict[tuple[str, int, str], _Owned]] = defaultdict(dict)
    for blob, readers in stored:
        if blob.size:
            copies[blob.sha256][blob.file, blob.offset, blob.key] = blob, readers
    found = []
    for digest, places in copies.items():
        if len(places) > 1:
            owners = frozenset(owner for _, readers in places.values() for owner in readers)
            size = next(blob.size for blob, _ in places.values())
            found.append(Duplicate(sha256=digest, size=size, places=tuple(sorted(places)), owners=owners))
    return tuple(sorted(found, key=lambda duplicate: (-duplicate.wasted, duplicate.sha256)))


def _areas(stored: Iterable[_Owned]) -> tuple[Area, ...]:
    grouped: dict[tuple[str, frozenset[str]], list[int]] = defaultdict(list)
    for blob, readers in stored:
        grouped[blob.group or "other", readers].append(blob.size)
    areas = [
        Area(group=group, owners=tuple(sorted(readers)), blobs=len(sizes), total=sum(sizes))
        for (group, readers), sizes in grouped.items()
    ]
    return tuple(sorted(areas, key=lambda area: (-area.total, area.group, area.owners)))


def _rows(stored: Iterable[_Owned], name: Callable[[Blob], str]) -> tuple[Row, ...]:
    grouped: dict[str, list[_Owned]] = defaultdict(list)
    for blob, readers in stored:
        grouped[name(blob)].append((blob, readers))
    return tuple(
        Row(
            name=key,
            blobs=len(group),
            total=sum(blob.size for blob, _ in group),
            shared=sum(blob.size for blob, readers in group if len(readers) > 1),
            unique=sum(blob.size for blob, readers in group if len(readers) == 1),
        )
        for key, group in sorted(grouped.items())
    )
