"""Find plugins by entry point, each loaded in a room of its own so that a broken one cannot harm the others."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import attrs
import pluggy

from lora_core import hookspecs
from lora_core.errors import Problem
from lora_core.hookspecs import ENTRY_POINT_GROUP
from lora_core.plugin.installed import InstalledPoint, installed_points, told
from lora_core.plugin.registry import Entry, Origin, settle
from lora_core.suggestions import nearest

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

PREFIX = "lora_core_"


@attrs.frozen(kw_only=True)
class Fault:
    """Something wrong with one plugin; the others keep working.

    `name` is what cannot be used because of it, if one of the plugin's offers is meant.
    """

    origin: Origin
    problem: Problem
    name: str | None = None

    @property
    def report(self) -> Problem:
        """The problem with the plugin and its distribution named."""
        what = self.problem.what
        return attrs.evolve(self.problem, what=f"P{str(self.origin)[1:]}: {what[:1].lower()}{what[1:]}")

    def __str__(self) -> str:
        return str(self.report)


@attrs.frozen(kw_only=True, eq=False)
class Plugin:
    """A plugin whose hooks can be called: `hooks` is a pluggy manager with this plugin alone.

    One manager each, because in a shared one a raising implementation discards every result and a plugin that fails
    validation stays half registered.
    """

    origin: Origin
    hooks: pluggy.PluginManager


@attrs.frozen(kw_only=True)
class Discovery:
    """The plugins that loaded, and what was wrong with those that did not or not wholly."""

    plugins: tuple[Plugin, ...]
    faults: tuple[Fault, ...]


def discover(found: Iterable[EntryPoint] | None = None) -> Discovery:
    """Load every plugin of the entry-point group `lora_core` (or the entry points given), in order of their names."""
    points = installed_points(ENTRY_POINT_GROUP) if found is None else [told(point) for point in found]
    candidates = [Entry(name=point.name, value=point, origin=_origin(point)) for point in points]
    unique, clashes = settle("plugin", sorted(candidates, key=lambda entry: (entry.name, entry.origin.distribution)))
    faults = [Fault(origin=entry.origin, problem=clash.problem) for clash in clashes for entry in clash.entries]
    plugins: list[Plugin] = []
    for entry in unique:
        plugin, wrong = _load(entry.value, entry.origin)
        plugins += [] if plugin is None else [plugin]
        faults += [Fault(origin=entry.origin, problem=problem) for problem in wrong]
    return Discovery(plugins=tuple(plugins), faults=tuple(faults))


def _origin(point: InstalledPoint) -> Origin:
    return Origin(plugin=point.name, module=point.value, distribution=point.distribution)


def _load(point: InstalledPoint, origin: Origin) -> tuple[Plugin | None, Sequence[Problem]]:
    try:
        module = point.load()
    except Exception as error:  # noqa: BLE001 becomes the fault
        what = f"Cannot be imported: {type(error).__name__}: {error}"
        return None, [Problem(what=what, where=origin.module, remedy=f"Reinstall or remove {origin.distribution}.")]
    return admit(module, origin)


def admit(module: object, origin: Origin) -> tuple[Plugin | None, Sequence[Problem]]:
    """Register the hook implementations of `module`; returns no plugin if none of them can be used."""
    if not isinstance(module, ModuleType):
        what = f"The entry point names a {type(module).__name__}, not a module with hook implementations"
        return None, [Problem(what=what, where=origin.module)]
    hooks = pluggy.PluginManager("lora_core")
    hooks.add_hookspecs(hookspecs)
    problems = _unmarked(module, hooks)
    try:
        hooks.register(module, origin.plugin)
    except pluggy.PluginValidationError as error:
        return None, [*problems, Problem(what=f"A hook does not match its specification: {error}", where=origin.module)]
    problems += _misspelt(module, hooks)
    problems += _never_filled(module, hooks)
    if not any(_implementations(hooks)) and not problems:
        problems.append(Problem(what="No hook of lora-core is implemented", where=origin.module))
    return Plugin(origin=origin, hooks=hooks), problems


def hook_names() -> list[str]:
    """Return the names of all hooks that a plugin may implement."""
    return [name for name in vars(hookspecs) if name.startswith(PREFIX)]


def _implementations(hooks: pluggy.PluginManager) -> list[pluggy.HookImpl]:
    return [impl for name in hook_names() for impl in getattr(hooks.hook, name).get_hookimpls()]


def _unmarked(module: ModuleType, hooks: pluggy.PluginManager) -> list[Problem]:
    """Report functions named like hooks that pluggy would not see, as they lack our `hookimpl`."""
    functions = [name for name, value in vars(module).items() if name.startswith(PREFIX) and inspect.isfunction(value)]
    return [
        _wrong_name(name, module) or Problem(what=f"{name} is not marked with @hookimpl", where=module.__name__)
        for name in functions
        if hooks.parse_hookimpl_opts(module, name) is None
    ]


def _misspelt(module: ModuleType, hooks: pluggy.PluginManager) -> list[Problem]:
    """Report implementations of hooks that do not exist; pluggy itself is silent until `check_pending`."""
    options = {name: hooks.parse_hookimpl_opts(module, name) for name in vars(module)}
    meant = [found.get("specname") or name for name, found in options.items() if found is not None]
    return [problem for name in meant if (problem := _wrong_name(name, module)) is not None]


def _wrong_name(name: str, module: ModuleType) -> Problem | None:
    names = hook_names()
    if name in names:
        return None
    guess = nearest(name, names)
    remedy = f"Did you mean {guess!r}?" if guess else f"Hooks: {', '.join(names)}."
    return Problem(what=f"There is no hook {name!r}", where=module.__name__, remedy=remedy)


def _never_filled(module: ModuleType, hooks: pluggy.PluginManager) -> list[Problem]:
    """Report parameters with a default: pluggy never fills them."""
    return [
        Problem(
            what=f"{impl.function.__name__} gives {', '.join(impl.kwargnames)} a default, so it is never filled",
            where=module.__name__,
            remedy="Remove the default.",
        )
        for impl in _implementations(hooks)
        if impl.kwargnames
    ]
