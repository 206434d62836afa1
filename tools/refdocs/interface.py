"""Hooks, descriptors, and what a backend is given and gives back."""

from __future__ import annotations

import inspect
import re

from lora_core import backend, capability, events, hookspecs, specs
from lora_core.events import Event
from refdocs.markdown import code, doc, first_line, page, table
from refdocs.records import fields, section


def hooks() -> str:
    """Return the page of the hooks."""
    found = [(name, value) for name, value in vars(hookspecs).items() if name.startswith("lora_core_")]
    rows = [[f"[`{name}`](#{name})", first_line(doc(hook))] for name, hook in found]
    parts = [f"## `{name}`\n\n```python\n{_head(hook)}\n```\n\n{doc(hook)}" for name, hook in found]
    return page("Hooks", doc(hookspecs), table(["hook", "what it does"], rows), *parts)


def descriptors() -> str:
    """Return the page of the specs."""
    classes = (
        specs.BackendSpec,
        specs.ReservedNames,
        specs.ModelSourceSpec,
        specs.AdapterFormatSpec,
        specs.ExecutorSpec,
        specs.CommandSpec,
    )
    capabilities = [[code(each.name), code(each.value)] for each in capability.Capability]
    return page(
        "Descriptors",
        doc(specs),
        f"This is version {specs.API_VERSION} of the plugin interface (`API_VERSION`).",
        *(section(each) for each in classes),
        f"## `Capability`\n\n{doc(capability.Capability)}\n\n" + table(["member", "value"], capabilities),
    )


def backends() -> str:
    """Return the page of the backend's interface."""
    methods = []
    for name, member in vars(backend.Backend).items():
        function = member.fget if isinstance(member, property) else member
        if not name.startswith("_") and inspect.isfunction(function):
            must = "Must be implemented" if getattr(member, "__isabstractmethod__", False) else "Has a default"
            kind = " (a property)" if isinstance(member, property) else ""
            methods.append(f"### `{name}`\n\n```python\n{_head(function)}\n```\n\n{must}{kind}. {doc(member)}")
    classes = (backend.ExportJob, backend.Artifacts, backend.WrittenFile, backend.Diagnosis)
    return page(
        "The interface of a backend",
        doc(backend),
        f"## `Backend`\n\n{doc(backend.Backend)}",
        *methods,
        *(section(each) for each in classes),
    )


def events_page() -> str:
    """Return the page of the events."""
    found = [value for value in vars(events).values() if isinstance(value, type) and issubclass(value, Event)]
    kinds = [each for each in found if each is not Event]
    helpers = [f"`{name}`: {first_line(doc(getattr(events, name)))}" for name in ("stage", "ignore")]
    return page(
        "Events",
        doc(events),
        *(f"## `{each.__name__}`\n\n{doc(each)}\n\n{fields(each)}" for each in kinds),
        "## Emitting\n\n`Emit` is a function that takes an event.\n\n" + "\n".join(f"- {each}" for each in helpers),
    )


def _head(function: object) -> str:
    """Return the signature as the source writes it: annotations are strings there, and shown without their quotes."""
    name = getattr(function, "__name__", "")
    signature = str(inspect.signature(function))  # type: ignore[arg-type]
    return f"def {name}" + re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)
