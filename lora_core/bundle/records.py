"""The records of all adapters of a bundle as a tree, of which only what is asked for is read or written.

Up to `LEAF` adapters stand in one node; a node with more has a branch for each next digit of the hashes of their names.
So the same adapters make the same tree, in whatever order they came and went, and what one of them costs does not grow
with their number. A node names its branches by the hashes of their files, and `manifest.json` has the root: whoever
knows its hash knows every record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Protocol, TypeVar

import attrs

from lora_core.bundle.entries import AdapterRecord, Artifact, Branch, BundledAdapter, Method
from lora_core.bundle.paths import records_file
from lora_core.bundle.rendering import plain, rendered
from lora_core.errors import BundleError

FORMAT = "lora-core records"
SCHEMA_VERSION = 4
"""Of `manifest.json` and of the files of records beside it."""
LEAF = 64
"""Adapters whose records stand in one file; up to so many, `manifest.json` has them all."""
NOT_CANONICAL = "must be there where there are too many adapters for one file, and in place of them."

T = TypeVar("T")
K = TypeVar("K")


class ChangedMeanwhileError(BundleError):
    """A file of records is not the one that was named: another process changed the bundle, or it is damaged."""


def key(name: str) -> str:
    """Return the place of an adapter's record; names that differ only in case have one, as they are one file on some
    systems.
    """
    return hashlib.sha256(name.lower().encode()).hexdigest()


@attrs.frozen(kw_only=True)
class RecordNode:
    """Records that begin with `prefix`: all of them, by name (a leaf), or the `branches` that have them (a fork)."""

    prefix: str
    records: tuple[AdapterRecord, ...] = ()
    branches: tuple[RecordNode | Branch, ...] = ()

    @property
    def adapters(self) -> int:
        """The number of adapters below."""
        return len(self.records) + sum(each.adapters for each in self.branches)

    @property
    def canonical(self) -> bool:
        """Whether the same adapters would be written in this form."""
        return not (self.records and self.branches) and (self.adapters > LEAF) == bool(self.branches)

    @cached_property
    def data(self) -> bytes:
        """The bytes of the file of this node."""
        document = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "prefix": self.prefix}
        return rendered(document | listed(self.records) | {"branches": plain(self.named, "branches")})

    @property
    def named(self) -> tuple[Branch, ...]:
        """The branches as they are written."""
        return tuple(map(_branch, self.branches))

    @cached_property
    def branch(self) -> Branch:
        """What the node above says of this one."""
        return Branch(prefix=self.prefix, adapters=self.adapters, sha256=hashlib.sha256(self.data).hexdigest())

    @classmethod
    def of(cls, prefix: str, records: Iterable[AdapterRecord]) -> RecordNode:
        """Return the node of `records`, whose keys begin with `prefix`."""
        found = tuple(sorted(records, key=lambda each: each.name))
        if len(found) <= LEAF:
            return cls(prefix=prefix, records=found)
        parts = _parted(found, lambda each: key(each.name)[len(prefix)])
        return cls(prefix=prefix, branches=tuple(cls.of(prefix + digit, parts[digit]) for digit in sorted(parts)))


class RecordSource(Protocol):
    """Where nodes are read that are named and not in memory."""

    def read(self, branch: Branch) -> RecordNode:
        """Return the node that `branch` names; raises `ChangedMeanwhileError`, or `BundleError` for a damaged one."""

    def now(self) -> Records | None:
        """Return the records as they are on disk now, None if that cannot be told."""

    def seen(self) -> Iterator[AdapterRecord]:
        """Yield the records of nodes that were read."""


@attrs.frozen(kw_only=True, eq=False)
class Records:
    """The records of a bundle. Equal if they are of the same adapters, which is known without reading them."""

    root: RecordNode
    source: RecordSource | None = None

    @classmethod
    def of(cls, records: Iterable[AdapterRecord]) -> Records:
        """Return records that are in memory."""
        return cls(root=RecordNode.of("", records))

    def __eq__(self, other: object) -> bool:
        return self.root.branch == other.root.branch if isinstance(other, Records) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.root.adapters

    def find(self, name: str, *, like: bool = False) -> AdapterRecord | None:
        """Return the record of an adapter, None if there is none; with `like`, of one whose name differs only in case.

        One that another process changed after these were opened is returned as it is now.
        """
        place = key(name)
        record = self._surely(lambda records: records._at(place))
        return record if record is not None and (like or record.name == name) else None

    @cached_property
    def all(self) -> tuple[AdapterRecord, ...]:
        """All records by name; reads every file of them."""
        found = self._surely(lambda records: tuple(records._below(records.root)))
        return tuple(sorted(found, key=lambda each: each.name))

    @property
    def in_memory(self) -> Iterator[AdapterRecord]:
        """The records of nodes that no branch names: of the root, and of those that are new."""
        pending = [self.root]
        while pending:
            node = pending.pop()
            yield from node.records
            pending += [each for each in node.branches if isinstance(each, RecordNode)]

    @property
    def seen(self) -> Iterator[AdapterRecord]:
        """The records in memory and those that were read, of whatever state of the bundle."""
        yield from self.in_memory
        if self.source is not None:
            yield from self.source.seen()

    def changed(self, put: Iterable[AdapterRecord] = (), dropped: Iterable[str] = ()) -> Records:
        """Return these records without those of `dropped` names, and with those of `put`, new or in place of others."""
        changes: dict[str, AdapterRecord | None] = {key(name): None for name in dropped}
        changes |= {key(each.name): each for each in put}
        return attrs.evolve(self, root=self._updated(self.root, changes)) if changes else self

    def open(self, branch: RecordNode | Branch) -> RecordNode:
        """Return the node that `branch` names; raises as `RecordSource.read`."""
        if isinstance(branch, RecordNode):
            return branch
        if self.source is None:
            raise BundleError(f"Nothing says where {records_file(branch.prefix)!r} is: open the bundle's directory.")
        return self.source.read(branch)

    def branch(self, prefix: str) -> Branch | None:
        """Return the branch of the node with `prefix`, None if there is no such node."""
        node = self.root
        while (found := next((each for each in node.branches if prefix.startswith(each.prefix)), None)) is not None:
            if found.prefix == prefix:
                return _branch(found)
            node = self.open(found)
        return None

    def _surely(self, look: Callable[[Records], T]) -> T:
        """Look at the records; if another process changed them meanwhile, at what is there now."""
        records = self
        while True:
            try:
                return look(records)
            except ChangedMeanwhileError:
                current = None if records.source is None else records.source.now()
                if current is None or current == records:
                    raise
                records = current

    def _at(self, place: str) -> AdapterRecord | None:
        node = self.root
        while node.branches:
            found = next((each for each in node.branches if place.startswith(each.prefix)), None)
            if found is None:
                return None
            node = self.open(found)
        return next((each for each in node.records if key(each.name) == place), None)

    def _below(self, node: RecordNode | Branch) -> Iterator[AdapterRecord]:
        opened = self.open(node)
        yield from opened.records
        for each in opened.branches:
            yield from self._below(each)

    def _updated(self, node: RecordNode | Branch, changes: Mapping[str, AdapterRecord | None]) -> RecordNode:
        opened = self.open(node)
        if not opened.branches:
            return RecordNode.of(opened.prefix, _replaced(opened.records, changes))
        depth = len(opened.prefix)
        branches: dict[str, RecordNode | Branch] = {each.prefix: each for each in opened.branches}
        for digit, places in _parted(changes, lambda place: place[depth]).items():
            prefix = opened.prefix + digit
            below = branches.get(prefix, RecordNode(prefix=prefix))
            branches[prefix] = self._updated(below, {place: changes[place] for place in places})
        kept = tuple(branches[prefix] for prefix in sorted(branches) if branches[prefix].adapters)
        fork = RecordNode(prefix=opened.prefix, branches=kept)
        return fork if fork.adapters > LEAF else RecordNode.of(opened.prefix, self._below(fork))


@attrs.frozen(kw_only=True)
class RecordsDifference:
    """What differs between two trees: records of nodes that only one of them has, `files` of nodes to write by path,
    stored files that those `replaced`, and stored files that are `gone`.
    """

    old: tuple[AdapterRecord, ...]
    new: tuple[AdapterRecord, ...]
    files: Mapping[str, RecordNode]
    replaced: tuple[str, ...]
    gone: tuple[str, ...]


def difference(old: Records, new: Records) -> RecordsDifference:
    """Compare two trees, reading only what differs; raises as `RecordSource.read`."""
    records: tuple[list[AdapterRecord], list[AdapterRecord]] = ([], [])
    files: dict[str, RecordNode] = {}
    stored: list[str] = []
    pending: list[tuple[RecordNode | Branch | None, RecordNode | Branch | None]] = [(old.root, new.root)]
    while pending:
        before, after = pending.pop()
        if isinstance(before, Branch) and after is not None and _branch(after) == before:
            continue
        if isinstance(before, Branch):
            stored.append(records_file(before.prefix))
        opened = (None if before is None else old.open(before), None if after is None else new.open(after))
        if opened[1] is not None and opened[1].prefix:
            files[records_file(opened[1].prefix)] = opened[1]
        for node, found in zip(opened, records, strict=True):
            found += node.records if node is not None else ()
        sides = [{each.prefix: each for each in node.branches} if node is not None else {} for node in opened]
        pending += [(sides[0].get(prefix), sides[1].get(prefix)) for prefix in sorted({*sides[0], *sides[1]})]
    return RecordsDifference(
        old=tuple(records[0]),
        new=tuple(records[1]),
        files=files,
        replaced=tuple(each for each in stored if each in files),
        gone=tuple(each for each in stored if each not in files),
    )


def listed(records: Sequence[AdapterRecord]) -> dict[str, object]:
    """Return records as the three lists of a file: artifacts by path, adapters by name, methods by adapter."""
    artifacts, adapters, methods = flat(records)
    return {
        "artifacts": plain(artifacts, "artifacts"),
        "adapters": plain(adapters, "adapters"),
        "methods": plain(methods, "methods"),
    }


def flat(
    records: Iterable[AdapterRecord],
) -> tuple[tuple[Artifact, ...], tuple[BundledAdapter, ...], tuple[Method, ...]]:
    """Return the artifacts, adapters and methods of records, in the order in which they are written."""
    found = list(records)
    artifacts = [artifact for record in found for artifact in record.artifacts]
    methods = [method for record in found for method in record.methods]
    return (
        tuple(sorted(artifacts, key=lambda each: each.path)),
        tuple(sorted((record.adapter for record in found), key=lambda each: each.name)),
        tuple(sorted(methods, key=lambda each: (each.adapter is not None, each.adapter or "", each.name))),
    )


def grouped(
    artifacts: Iterable[Artifact], adapters: Iterable[BundledAdapter], methods: Iterable[Method]
) -> tuple[tuple[Artifact, ...], tuple[AdapterRecord, ...], tuple[Method, ...]]:
    """Return the base's artifacts, a record for each of `adapters`, and the base's methods.

    What belongs to an adapter that is not there counts as the base's, for whoever checks that to complain of.
    """
    entries = {each.name: each for each in adapters}

    def owner(entry: Artifact | Method) -> str | None:
        return entry.adapter if entry.adapter in entries else None

    files, entry_points = _parted(artifacts, owner), _parted(methods, owner)
    records = tuple(
        AdapterRecord(adapter=each, artifacts=tuple(files.get(name, ())), methods=tuple(entry_points.get(name, ())))
        for name, each in entries.items()
    )
    return tuple(files.get(None, ())), records, tuple(entry_points.get(None, ()))


def _branch(node: RecordNode | Branch) -> Branch:
    return node if isinstance(node, Branch) else node.branch


def _replaced(records: Sequence[AdapterRecord], changes: Mapping[str, AdapterRecord | None]) -> Iterator[AdapterRecord]:
    yield from (each for each in records if key(each.name) not in changes)
    yield from (each for each in changes.values() if each is not None)


def _parted(items: Iterable[T], part: Callable[[T], K]) -> dict[K, list[T]]:
    parts: dict[K, list[T]] = {}
    for item in items:
        parts.setdefault(part(item), []).append(item)
    return parts
