"""What a process of a fleet does: packs some adapters, each for itself, and says what came of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.packages.header import SUFFIX
from lora_core.adapters.packages.seal import SigningKey, sealed_digest
from lora_core.adapters.packages.writing import package_bytes
from lora_core.bundle.durable import write_whole
from lora_core.errors import LoraCoreError, Problem
from lora_core.fleet.index import IndexEntry
from lora_core.fleet.origins import FleetAdapter
from lora_core.pipeline.packing_kit import PackingKit, Readied
from lora_core.plugin import loading

if TYPE_CHECKING:
    from lora_core.plugin.registry import Entry


@attrs.frozen(kw_only=True)
class FleetWork:
    """What every task is given: `out` is where packages go (None: they are handed back), `key` signs them."""

    kit: PackingKit
    formats: tuple[Entry[Any], ...]
    out: Path | None
    key: SigningKeyText | None = None

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of all that decides what a package holds besides its adapter."""
        readers = [[entry.name, entry.origin.distribution] for entry in self.formats]
        told = [self.kit.digest, readers, None if self.key is None else self.key.public]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def made_formats(self) -> list[AdapterFormat]:
        """Import and make the adapter formats."""
        return [
            loading.make(entry.value.target, AdapterFormat, f"adapter format {entry.name!r}", entry.origin)
            for entry in self.formats
        ]


@attrs.frozen(kw_only=True)
class SigningKeyText:
    """A signing key as the file that it is read from; `public` decides what packages hold."""

    path: Path
    public: str


@attrs.frozen(kw_only=True)
class FleetTask:
    """Adapters to pack together, with the keys of the packages that are there of them."""

    adapters: tuple[tuple[FleetAdapter, str | None], ...]


@attrs.frozen(kw_only=True)
class FleetOutcome:
    """What came of one adapter: its entry for the index, or `problems`. `written` is False if the package was there,
    `content` is its bytes where they were not written; `doubt` speaks against an adapter that fits.
    """

    place: str
    name: str
    entry: IndexEntry | None = None
    written: bool = False
    content: bytes | None = None
    problems: tuple[Problem, ...] = ()
    doubt: str | None = None


def pack_some(work: FleetWork, task: FleetTask) -> tuple[FleetOutcome, ...]:
    """Pack the adapters of a task. What is wrong with one is its outcome; raises `StorageError` for a full disk."""
    formats = work.made_formats()
    key = None if work.key is None else SigningKey.read(work.key.path)
    return tuple(_packed(work, adapter, known, formats, key) for adapter, known in task.adapters)


def _packed(
    work: FleetWork, adapter: FleetAdapter, known: str | None, formats: Sequence[AdapterFormat], key: SigningKey | None
) -> FleetOutcome:
    try:
        with adapter.at_hand() as reference:
            readied = work.kit.readied(reference, formats)
            name = _key(work, readied)
            if name == known:
                return FleetOutcome(place=adapter.place, name=adapter.name, doubt=readied.doubt)
            parts = package_bytes(readied.adapter, readied.source, key)
    except LoraCoreError as error:
        return FleetOutcome(place=adapter.place, name=adapter.name, problems=tuple(error.problems))
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:
        # Thousands of others need not wait until this is mended.
        what = f"Adapter {adapter.name!r} cannot be read: {type(error).__name__}: {error}"
        problem = Problem(
            what=what, where=adapter.location, remedy="If the file is whole, this is a defect: report it."
        )
        return FleetOutcome(place=adapter.place, name=adapter.name, problems=(problem,))
    target = f"{adapter.name}{SUFFIX}"
    if work.out is not None:
        write_whole(work.out / target, parts)
    entry = IndexEntry(
        place=adapter.place,
        name=adapter.name,
        key=name,
        work=work.digest,
        signature=adapter.signature,
        adapter=readied.adapter.digest,
        package=target,
        size=sum(map(len, parts)),
        digest=sealed_digest(parts[0]),
    )
    return FleetOutcome(
        place=adapter.place,
        name=adapter.name,
        entry=entry,
        written=True,
        content=b"".join(parts) if work.out is None else None,
        doubt=readied.doubt,
    )


def _key(work: FleetWork, readied: Readied) -> str:
    """Return the SHA-256 of all that decides a package's bytes."""
    adapter, prompting = readied.adapter, dict(readied.source.prompting)
    told = [work.digest, adapter.name, adapter.digest, adapter.base_model, prompting]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
