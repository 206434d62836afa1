"""Ask plugins what they offer, and keep what is well formed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from lora_core.errors import Problem
from lora_core.plugin.discovery import Fault, Plugin
from lora_core.plugin.registry import Entry, settle
from lora_core.specs import API_VERSION

T = TypeVar("T")


def collect(kind: str, hook: str, wanted: type[T], plugins: Iterable[Plugin]) -> tuple[list[Entry[T]], list[Fault]]:
    """Call `hook` of every plugin and return the `wanted` values by name, and a fault for each that cannot be used."""
    entries: list[Entry[T]] = []
    faults: list[Fault] = []
    for plugin in plugins:
        offered, problems = _ask(plugin, hook)
        faults += [Fault(origin=plugin.origin, problem=problem) for problem in problems]
        for value in offered:
            problem = _objection(value, wanted, hook)
            if problem is None and isinstance(value, wanted):
                entries.append(Entry(name=_name(value), value=value, origin=plugin.origin))
            elif problem is not None:
                faults.append(Fault(origin=plugin.origin, problem=problem, name=_name(value) or None))
    settled, clashes = settle(kind, entries)
    for clash in clashes:
        faults += [Fault(origin=entry.origin, problem=clash.problem, name=clash.name) for entry in clash.entries]
    return settled, faults


def _ask(plugin: Plugin, hook: str) -> tuple[list[object], list[Problem]]:
    try:
        results = getattr(plugin.hooks.hook, hook)()
    except Exception as error:  # noqa: BLE001 becomes the fault
        what = f"{hook} raised {type(error).__name__}: {error}"
        return [], [Problem(what=what, where=plugin.origin.module)]
    offered: list[object] = []
    problems: list[Problem] = []
    for result in results:
        if isinstance(result, Sequence) and not isinstance(result, str | bytes):
            offered += result
        else:
            what = f"{hook} returned a {type(result).__name__} where a list was expected"
            problems.append(Problem(what=what, where=plugin.origin.module))
    return offered, problems


def _objection(value: object, wanted: type[object], hook: str) -> Problem | None:
    """Return why `value` cannot be used as a `wanted`, or None."""
    if not isinstance(value, wanted):
        return Problem(what=f"{hook} returned a {type(value).__name__} where a {wanted.__name__} was expected")
    if not _name(value):
        return Problem(what=f"{hook} returned a {wanted.__name__} without a name")
    version = getattr(value, "api_version", API_VERSION)
    if version == API_VERSION:
        return None
    return Problem(
        what=f"{wanted.__name__} {_name(value)!r} is made for version {version!r} of the plugin interface; "
        f"this lora-core has version {API_VERSION}",
        remedy="Update lora-core." if isinstance(version, int) and version > API_VERSION else "Update the plugin.",
    )


def _name(value: object) -> str:
    name = getattr(value, "name", "")
    return name if isinstance(name, str) else ""
