"""Import what a descriptor names (`package.module:Name`), blaming the plugin when that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from lora_core.errors import PluginError
from lora_core.plugin.blame import blaming
from lora_core.plugin.guarded import guarded
from lora_core.plugin.registry import Origin


def load(target: str, what: str, origin: Origin, *, remedy: str = "") -> Any:
    """Return the object that `target` names; `what` says in messages what it is for.

    Raises `PluginError` naming the plugin when the module cannot be imported or lacks the name.
    """
    module, _, name = target.partition(":")
    if not module or not name:
        raise PluginError(f"The {what} of {origin} has target {target!r}; a target is spelt 'package.module:Name'")
    with blaming(f"import of {what}", origin, remedy=remedy):
        return getattr(import_module(module), name)


def make(
    target: str,
    interface: type[Any],
    what: str,
    origin: Origin,
    *,
    remedy: str = "",
    gives: Mapping[str, Callable[[], type[Any]]] | None = None,
) -> Any:
    """Return an instance of the class that `target` names, made without arguments; it must derive from `interface`.

    What its methods raise later names the plugin too, and so do the methods of what those in `gives` return (see
    `guarded`).
    """
    cls = load(target, what, origin, remedy=remedy)
    if not isinstance(cls, type) or not issubclass(cls, interface):
        raise PluginError(
            f"The {what} of {origin} is {target!r}, which is not a {interface.__module__}.{interface.__name__}"
        )
    with blaming(f"making of {what}", origin, remedy=remedy):
        return guarded(cls, interface, what, origin, gives)()
