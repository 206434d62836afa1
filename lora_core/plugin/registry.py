"""Named things that plugins offer, each with the distribution that does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import attrs

from lora_core.errors import LoraCoreError, PluginError, Problem, UsageError
from lora_core.suggestions import did_you_mean

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Origin:
    """Where an offer comes from: the plugin (entry-point name), its module, and its distribution with version.

    `core` marks what lora-core itself brings; those names are reserved.
    """

    plugin: str
    module: str
    distribution: str
    core: bool = False

    def __str__(self) -> str:
        return f"plugin {self.plugin!r} of {self.distribution}"


@attrs.frozen(kw_only=True)
class Entry(Generic[T]):
    """One value offered under a name."""

    name: str
    value: T
    origin: Origin


@attrs.frozen(kw_only=True)
class Clash:
    """One name offered more than once: `entries` are those that are not used, `problem` says why."""

    name: str
    entries: tuple[Entry[Any], ...]
    problem: Problem


class Registry(Mapping[str, T]):
    """Values by name, in order of registration. Asking for an unknown name raises an error that lists the choices."""

    def __init__(
        self,
        kind: str,
        entries: Iterable[Entry[T]],
        *,
        blocked: Mapping[str, Problem] | None = None,
        nothing: str = "No plugin offers any.",
        error: Callable[[Problem], LoraCoreError] = UsageError,
    ) -> None:
        """Hold `entries` of `kind` (a word for messages: "backend"), whose names are unique.

        Asking for a name in `blocked` raises `PluginError` with its problem; for any other unknown name, `error`,
        with `nothing` as the remedy when there are no choices.
        """
        self.kind = kind
        self._entries = {entry.name: entry for entry in entries}
        self._blocked = dict(blocked or {})
        self._nothing = nothing
        self._error = error

    def __getitem__(self, name: str) -> T:
        return self.entry(name).value

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        # Mapping's own waits for a KeyError, which this registry never raises.
        return name in self._entries

    def find(self, name: str) -> T | None:
        """Return the value called `name`, None if there is none."""
        return self._entries[name].value if name in self._entries else None

    def entry(self, name: str) -> Entry[T]:
        """Return the value called `name` with its origin; raises as the constructor says."""
        if name in self._entries:
            return self._entries[name]
        if name in self._blocked:
            raise PluginError(self._blocked[name])
        remedy = did_you_mean(name, self._entries, nothing=self._nothing)
        raise self._error(Problem(what=f"There is no {self.kind} {name!r}", remedy=remedy))


def settle(kind: str, entries: Iterable[Entry[T]]) -> tuple[list[Entry[T]], list[Clash]]:
    """Return the entries whose names nobody else claims, and the clashes.

    A name that two plugins claim goes to neither: which came first depends on the order of `sys.path`. A name of the
    core stays the core's.
    """
    claims: dict[str, list[Entry[T]]] = {}
    for entry in entries:
        claims.setdefault(entry.name, []).append(entry)
    settled: list[Entry[T]] = []
    clashes: list[Clash] = []
    for name, claimants in claims.items():
        owners = [entry for entry in claimants if entry.origin.core] or claimants
        if len(owners) == 1:
            settled.append(owners[0])
        refused = tuple(entry for entry in claimants if len(owners) > 1 or entry is not owners[0])
        if refused:
            clashes.append(Clash(name=name, entries=refused, problem=_clash(kind, name, claimants, owners)))
    return settled, clashes


def _clash(kind: str, name: str, claimants: list[Entry[T]], owners: list[Entry[T]]) -> Problem:
    claimed = " and by ".join(str(entry.origin) for entry in claimants)
    used = f"that of {owners[0].origin.distribution} is used" if len(owners) == 1 else "none of them is used"
    return Problem(
        what=f"The {kind} name {name!r} is claimed by {claimed}; {used}",
        remedy="Uninstall or rename all but one of them.",
    )
