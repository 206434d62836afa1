"""`--adapter` and `--adapter-files`, as `export`, `add` and `verify` have them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from lora_core.adapters.reference import AdapterReference, parse_references
from lora_core.errors import Problem, UsageError

ADAPTER = click.Option(
    ["--adapter"],
    multiple=True,
    metavar="NAME=DIR[@STRENGTH]",
    help="An adapter, or a composite such as mix=a:0.7+b:0.3. Repeatable.",
)
ADAPTER_FILES = click.Option(
    ["--adapter-files"],
    multiple=True,
    nargs=3,
    type=(str, click.Path(path_type=Path), click.Path(path_type=Path)),
    metavar="NAME WEIGHTS CONFIG",
    help="An adapter as its two files. Repeatable.",
)


def references(
    texts: Sequence[str], files: Sequence[tuple[str, Path, Path]], *, more: Sequence[AdapterReference] = ()
) -> tuple[AdapterReference, ...]:
    """Return the adapters given by both options, then `more`; raises `UsageError` with every problem."""
    problems: list[Problem] = []
    found: list[AdapterReference] = []
    try:
        found += parse_references(tuple(texts))
    except UsageError as error:
        problems += error.problems
    for name, weights, config in files:
        try:
            found.append(AdapterReference(name=name, weights=weights, config=config))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    return (*found, *more)


def each_directory(parent: Path) -> tuple[AdapterReference, ...]:
    """Return an adapter for each subdirectory of `parent`, called as it, in order; raises `UsageError`."""
    if not parent.is_dir():
        raise UsageError(f"There is no directory {str(parent)!r}", remedy="--from-dir takes a directory of adapters.")
    found: list[AdapterReference] = []
    problems: list[Problem] = []
    for path in sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            found.append(AdapterReference(name=path.name, directory=path))
        except UsageError as error:
            problems += error.problems
    if problems:
        raise UsageError(problems)
    if not found:
        raise UsageError(f"Directory {str(parent)!r} holds no adapters", remedy="Each subdirectory is one adapter.")
    return tuple(found)
