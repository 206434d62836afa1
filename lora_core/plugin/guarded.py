"""A plugin's class as the core uses it: its foreign exceptions name the plugin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lora_core.plugin.blame import blaming
from lora_core.plugin.registry import Origin


def guarded(cls: type[Any], interface: type[Any], what: str, origin: Origin) -> type[Any]:
    """Return a subclass of `cls` whose methods of `interface` turn foreign exceptions into `PluginError`.

    `what` names the thing for messages ("backend 'coreml'"). A subclass rather than a proxy, so that everything else
    the class offers stays as it is, and so that new methods of the interface are guarded without being listed here.
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
    return type(cls.__name__, (cls,), {**methods, "__module__": cls.__module__, "__doc__": cls.__doc__})


def _guard(function: Callable[..., Any], what: str, origin: Origin) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with blaming(what, origin):
            return function(*args, **kwargs)

    return call
