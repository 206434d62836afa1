"""What a manifest lists of base and adapters together, read when somebody looks at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar, overload

import attrs

from lora_core.bundle.entries import Artifact, BundledAdapter, Method
from lora_core.bundle.paths import MANIFEST
from lora_core.bundle.records import Records, flat
from lora_core.errors import BundleError

Entry = TypeVar("Entry", bound=Artifact | BundledAdapter | Method)
_ORDER = ("artifacts", "adapters", "methods")


@attrs.frozen(kw_only=True, eq=False)
class Listing(Sequence[Entry], Generic[Entry]):
    """One list of a manifest (`part`): what is the base's `own`, and what `records` say of each adapter.

    A tuple in all that can be asked of both. Looking at its entries reads the records of every adapter; their number
    is known without, where each has one entry.
    """

    part: Literal["artifacts", "adapters", "methods"]
    own: tuple[Entry, ...]
    records: Records

    @cached_property
    def _entries(self) -> tuple[Entry, ...]:
        found: Sequence[Any] = flat(self.records.all)[_ORDER.index(self.part)]
        entries: tuple[Entry, ...] = (*self.own, *found)
        if self.part == "artifacts":
            entries = tuple(sorted(entries, key=_name))
        self._refuse_repeated([_name(each) for each in entries])
        return entries

    def _refuse_repeated(self, names: Sequence[str]) -> None:
        """Raise `BundleError` for what several files of records list; each by itself cannot know."""
        repeated = sorted(name for name, times in Counter(names).items() if times > 1)
        if repeated and self.records.root.branches:
            what = f"{self.part.capitalize()} of several adapters are called {', '.join(map(repr, repeated[:4]))}"
            raise BundleError(what, where=MANIFEST, remedy="The bundle is damaged: export it again.")

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        return self._entries[index]

    def __len__(self) -> int:
        return len(self.records) if self.part == "adapters" else len(self._entries)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Listing) and (self.part, self.records) == (other.part, other.records):
            return bool(self.own == other.own)
        return self._entries == tuple(other) if isinstance(other, Listing | tuple) else NotImplemented

    __hash__ = None  # type: ignore[assignment]


@attrs.frozen(kw_only=True)
class AdapterNames(Collection[str]):
    """The names of the adapters of `records`; whether one is among them is known without reading all."""

    records: Records

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.records.find(name) is not None

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in self.records.all)

    def __len__(self) -> int:
        return len(self.records)


def _name(entry: Artifact | BundledAdapter | Method) -> str:
    return entry.path if isinstance(entry, Artifact) else entry.name
