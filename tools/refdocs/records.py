"""attrs classes as tables of their fields."""

from __future__ import annotations

import inspect
from typing import Any

import attrs

from refdocs.markdown import code, doc, table


def section(cls: type[Any], level: int = 2) -> str:
    """Return a heading, the docstring and the fields of an attrs class."""
    return f"{'#' * level} `{cls.__name__}`\n\n{doc(cls)}\n\n{fields(cls)}"


def fields(cls: type[Any]) -> str:
    """Return the table of the fields of an attrs class: name, type as it is written, default."""
    rows = [[code(each.name), code(annotation(cls, each.name)), default(each)] for each in attrs.fields(cls)]
    return table(["field", "type", "default"], rows)


def annotation(cls: type[Any], name: str) -> str:
    """Return the annotation of a field as the source writes it."""
    found = next(each[name] for each in map(inspect.get_annotations, cls.__mro__) if name in each)
    return found if isinstance(found, str) else str(getattr(found, "__name__", found))


def default(field: attrs.Attribute[Any]) -> str:
    """Return the default of a field, as it would be written; "required" if it has none."""
    value: Any = field.default
    if value is attrs.NOTHING:
        return "required"
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        return "follows from other fields" if value.takes_self else code(f"{value.factory.__name__}()")
    return code(repr(value))
