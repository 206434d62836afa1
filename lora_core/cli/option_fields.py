"""Command line options made from the fields of an options class."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any

import attrs
import click

PREFIX = "backend_option_"


def options_of(cls: type[Any]) -> list[click.Option]:
    """Return an option for each field of the attrs class `cls` that has `help`, its value under `PREFIX` + name."""
    hints = typing.get_type_hints(cls, include_extras=False)
    return [_option(field, hints[field.name]) for field in attrs.fields(cls) if field.init and not _hidden(field)]


def taken(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the backend options from `values` and return those that were given, by field name."""
    names = [name for name in values if name.startswith(PREFIX)]
    options = {name.removeprefix(PREFIX): values.pop(name) for name in names}
    return {name: value for name, value in options.items() if value is not None and value != ()}


def _hidden(field: attrs.Attribute[Any]) -> bool:
    return not field.metadata.get("help")


def _option(field: attrs.Attribute[Any], hint: Any) -> click.Option:
    alias = field.alias or field.name
    name = PREFIX + alias
    word = field.metadata.get("flag") or "--" + alias.replace("_", "-")
    help_text = field.metadata["help"]
    kind, many = _scalar(hint)
    if kind is bool and not field.metadata.get("choices"):
        stem = word.removeprefix("--")
        return click.Option([f"{word}/--no-{stem}", name], default=None, help=_with_default(help_text, field))
    return click.Option(
        [word, name],
        type=_type(kind, field.metadata.get("choices")),
        multiple=many,
        default=None,
        help=_with_default(help_text + (" Repeatable." if many else ""), field),
    )


def _scalar(hint: Any) -> tuple[Any, bool]:
    """Return the type of one value, and whether there may be several: one int for `int | None`, many for tuples."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _scalar(next(part for part in typing.get_args(hint) if part is not type(None)))
    if origin in (tuple, list, frozenset) or getattr(origin, "__name__", "") == "Sequence":
        return _scalar(typing.get_args(hint)[0])[0], True
    if getattr(origin, "__name__", "") == "Mapping":
        # NAME=VALUE words; the class converts them.
        return str, True
    return hint, False


def _type(kind: Any, choices: Any) -> Any:
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
    if choices:
        # Not lowercase: names of choices are the backend's own. Numbers are choices by their text.
        return _Choice([str(choice) for choice in choices], kind if kind in (int, float) else str)
    if kind is Path:
        return click.Path(path_type=Path)
    return kind if kind in (int, float) else str


class _Choice(click.Choice[str]):
    """A choice whose value is converted to `kind` after it was recognized."""

    def __init__(self, choices: list[str], kind: type[Any]) -> None:
        super().__init__(choices)
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._kind(super().convert(str(value), param, ctx))


def _with_default(text: str, field: attrs.Attribute[Any]) -> str:
    default = field.default
    if default is None or default is attrs.NOTHING or isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        return text
    if default == () or default == "":
        return text
    shown = {True: "on", False: "off"}[default] if isinstance(default, bool) else default
    return f"{text} [default: {shown}]"
