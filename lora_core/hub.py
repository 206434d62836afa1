"""The plugin hub: everything that the installed plugins offer, by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from lora_core.errors import LoraCoreError, PluginError, PolicyError, Problem, UsageError
from lora_core.events import Event, Warned
from lora_core.models.families import ModelFamily
from lora_core.plugin import core as core_hooks
from lora_core.plugin import loading, options, requirements
from lora_core.plugin.discovery import Fault, Plugin, admit, discover
from lora_core.plugin.offers import collect
from lora_core.plugin.registry import Entry, Origin, Registry
from lora_core.quant.policy import QuantPolicy
from lora_core.specs import AdapterFormatSpec, BackendSpec, CommandSpec, ExecutorSpec, ModelSourceSpec
from lora_core.version import __version__

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from lora_core.adapters.format import AdapterFormat
    from lora_core.backend import Backend
    from lora_core.bundle.bundle import Bundle
    from lora_core.executor import TaskExecutor
    from lora_core.models.base import ModelSource

T = TypeVar("T")

CORE = Origin(plugin="core", module=core_hooks.__name__, distribution=f"lora-core {__version__}", core=True)


class PluginHub:
    """Discovers plugins when it is made and holds what they offer; nothing heavy is imported until it is asked for.

    Make one where a command or a test begins and pass it on; there is no global one. A faulty plugin never keeps
    another from working: `faults` names it.
    """

    def __init__(self, entry_points: Iterable[EntryPoint] | None = None) -> None:
        """Discover the installed plugins, or exactly those of `entry_points`; the core's own are always there."""
        core, wrong = admit(core_hooks, CORE)
        found = discover(entry_points)
        self._plugins = tuple(plugin for plugin in (core, *found.plugins) if plugin is not None)
        self._faults = [*(Fault(origin=CORE, problem=problem) for problem in wrong), *found.faults]
        self._deaf: set[str] = set()
        self.backends: Registry[BackendSpec] = self._registry(
            "backend",
            "lora_core_register_backends",
            BackendSpec,
            named_by_plugin=True,
            nothing="No plugin offers one; install one, for example `pip install lora-core-xnnpack`.",
        )
        self.model_sources: Registry[ModelSourceSpec] = self._registry(
            "model source", "lora_core_register_model_sources", ModelSourceSpec
        )
        self.model_families: Registry[ModelFamily] = self._registry(
            "model family", "lora_core_register_model_families", ModelFamily
        )
        self.adapter_formats: Registry[AdapterFormatSpec] = self._registry(
            "adapter format", "lora_core_register_adapter_formats", AdapterFormatSpec
        )
        self.policies: Registry[QuantPolicy] = self._registry(
            "quantization policy", "lora_core_register_quant_policies", QuantPolicy, error=PolicyError
        )
        self.executors: Registry[ExecutorSpec] = self._registry(
            "executor", "lora_core_register_executors", ExecutorSpec, named_by_plugin=True
        )
        self.commands: Registry[CommandSpec] = self._registry("command", "lora_core_register_commands", CommandSpec)

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The plugins that loaded, the core's own first."""
        return self._plugins

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Everything wrong with any plugin, in the order in which it was found."""
        return tuple(self._faults)

    def backend(self, name: str, *, check_requirements: bool = True) -> Backend:
        """Import and make the backend `name`; what it raises later names its plugin and distribution.

        `check_requirements=False` skips `BackendSpec.requires`, for work that needs none of it (linking).
        Raises `UsageError` for an unknown name and `PluginError` for a broken plugin or a missing requirement.
        """
        from lora_core.backend import Backend

        entry = self.backends.entry(name)
        if check_requirements and (problems := self.missing(name)):
            raise PluginError(problems)
        spec = entry.value
        made: Backend = loading.make(
            spec.target,
            Backend,
            f"backend {name!r}",
            entry.origin,
            remedy=spec.install_hint,
            gives={"open": _session},
        )
        return made

    def spec_of(self, bundle: Bundle) -> BackendSpec:
        """Return the descriptor of the backend that made `bundle`; raises `PluginError` if no plugin offers it."""
        name = bundle.manifest.backend
        if name not in self.backends:
            try:
                self.backends.entry(name)
            except PluginError:  # there is a plugin for it, which is broken: that is what to say
                raise
            except LoraCoreError as error:
                raise PluginError(
                    f"The bundle was made by backend {name!r}, which no installed plugin offers",
                    where=str(bundle.path),
                    remedy=f"Install that plugin, for example `pip install lora-core-{name.replace('_', '-')}`.",
                ) from error
        return self.backends[name]

    def missing(self, name: str) -> tuple[Problem, ...]:
        """Return a problem for each distribution that backend `name` requires and does not find, or not so."""
        return requirements.missing(self.backends[name])

    def backend_options(self, name: str) -> type[Any]:
        """Import the options class of backend `name`: an attrs class whose fields are its export options."""
        entry = self.backends.entry(name)
        return self._options_class(entry, entry.value.options, "options")

    def session_options_class(self, name: str) -> type[Any] | None:
        """Import the class whose fields are what a session of backend `name` can be told; None if it declares none."""
        entry = self.backends.entry(name)
        target = entry.value.session_options
        return None if target is None else self._options_class(entry, target, "session options")

    def options(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the options of backend `name` with `values` by field name; raises `UsageError`, all at once."""
        return options.build(self.backend_options(name), f"Backend {name!r}", values)

    def session_options(self, name: str, values: Mapping[str, Any]) -> Any:
        """Return the session options of backend `name` with `values` by field name, None if it declares none.

        Raises `UsageError`, all at once.
        """
        cls = self.session_options_class(name)
        if cls is not None:
            return options.build(cls, f"A session of backend {name!r}", values)
        if values:
            what = f"A session of backend {name!r} has no options, and was given {', '.join(sorted(values))}."
            raise UsageError(what, remedy="Leave them out.")
        return None

    def _options_class(self, entry: Entry[BackendSpec], target: str, what: str) -> type[Any]:
        loaded = loading.load(target, f"{what} of backend {entry.name!r}", entry.origin)
        if not isinstance(loaded, type):
            raise PluginError(f"The {what} of backend {entry.name!r} are not a class", where=target)
        return loaded

    def model_source(self, name: str) -> ModelSource:
        """Import and make the model source `name`, which then knows the model families of all plugins."""
        from lora_core.models.base import ModelSource

        entry = self.model_sources.entry(name)
        made: ModelSource = loading.make(entry.value.target, ModelSource, f"model source {name!r}", entry.origin)
        return made.with_families(tuple(self.model_families.values()))

    def adapter_format(self, name: str) -> AdapterFormat:
        """Import and make the adapter format `name`."""
        from lora_core.adapters.format import AdapterFormat

        entry = self.adapter_formats.entry(name)
        made: AdapterFormat = loading.make(entry.value.target, AdapterFormat, f"adapter format {name!r}", entry.origin)
        return made

    def executor(self, name: str) -> TaskExecutor:
        """Import and make the executor `name`."""
        from lora_core.executor import TaskExecutor

        entry = self.executors.entry(name)
        what, remedy = f"executor {name!r}", entry.value.install_hint
        made: TaskExecutor = loading.make(entry.value.target, TaskExecutor, what, entry.origin, remedy=remedy)
        return made

    def command(self, name: str) -> Any:
        """Import the `click.Command` that a plugin registered as `name`."""
        entry = self.commands.entry(name)
        return loading.load(entry.value.target, f"command {name!r}", entry.origin)

    def tell(self, event: Event) -> None:
        """Let every plugin hear `event`; one that raises is reported once and then hears nothing more."""
        for plugin in self._listeners:
            if plugin.origin.plugin in self._deaf:
                continue
            try:
                plugin.hooks.hook.lora_core_on_event(event=event)
            except Exception as error:  # noqa: BLE001 kept as a fault, and told to the others
                self._deaf.add(plugin.origin.plugin)
                what = f"lora_core_on_event raised {type(error).__name__}: {error}; it hears no more events"
                fault = Fault(origin=plugin.origin, problem=Problem(what=what, where=plugin.origin.module))
                self._faults.append(fault)
                self.tell(Warned(message=str(fault)))

    @cached_property
    def _listeners(self) -> tuple[Plugin, ...]:
        return tuple(plugin for plugin in self.plugins if plugin.hooks.hook.lora_core_on_event.get_hookimpls())

    def _registry(
        self,
        kind: str,
        hook: str,
        wanted: type[T],
        *,
        named_by_plugin: bool = False,
        nothing: str = "No plugin offers one.",
        error: type[LoraCoreError] = UsageError,
    ) -> Registry[T]:
        entries, faults = collect(kind, hook, wanted, self.plugins)
        self._faults += faults
        blocked = {fault.name: fault.report for fault in reversed(faults) if fault.name is not None}
        if named_by_plugin:
            # What a broken plugin would have offered is most often asked for by the plugin's own name.
            blocked = {fault.origin.plugin: fault.report for fault in reversed(self._faults)} | blocked
        return Registry(kind, entries, blocked=blocked, nothing=nothing, error=error)


def _session() -> type[Any]:
    from lora_core.runtime.session import Session  # a link opens none

    return Session
