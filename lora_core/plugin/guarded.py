"""A plugin's class as the core uses it: its foreign exceptions name the plugin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from lora_core.errors import PluginError
from lora_core.plugin.blame import blaming
from lora_core.plugin.registry import Origin


def guarded(
    cls: type[Any],
    interface: type[Any],
    what: str,
    origin: Origin,
    gives: Mapping[str, Callable[[], type[Any]]] | None = None,
) -> type[Any]:
    """Return a subclass of `cls` whose methods of `interface` turn foreign exceptions into `PluginError`.

    `what` names the thing for messages ("backend 'coreml'"). `gives` are the methods whose results are things of the
    plugin's too, each with a function that imports the interface by which they are guarded. A subclass rather than a
    proxy, so that everything else the class offers stays as it is, and so that new methods of the interface are guarded
    without being listed.
    """
    methods: dict[str, Any] = {}
    for name in dir(interface):
        attribute = getattr(cls, name)
        if name.startswith("_"):
            continue
        if isinstance(attribute, property) and attribute.fget is not None:
            methods[name] = property(_guard(attribute.fget, f"{name} of {what}", origin))
        elif callable(attribute):
            methods[name] = _guard(attribute, f"{name} of {what}", origin)
            if gives is not None and name in gives:
                methods[name] = _guard_result(methods[name], gives[name], what, origin)
    namespace = {**methods, "__module__": cls.__module__, "__doc__": cls.__doc__, "__slots__": ()}
    return type(cls.__name__, (cls,), namespace)


def _guard_result(
    function: Callable[..., Any], gives: Callable[[], type[Any]], what: str, origin: Origin
) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result, interface = function(*args, **kwargs), gives()
        if not isinstance(result, interface):
            raise PluginError(
                f"The {function.__name__} of {what} of {origin} returned a {type(result).__name__}, which is not a "
                f"{interface.__module__}.{interface.__name__}"
            )
        # An object cannot be replaced by one that shares its state, but without slots of its own a subclass fits it.
        result.__class__ = guarded(type(result), interface, f"the {interface.__name__.lower()} of {what}", origin)
        return result

    return call


def _guard(function: Callable[..., Any], what: str, origin: Origin) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with blaming(what, origin):
            return function(*args, **kwargs)

    return call
