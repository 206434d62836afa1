"""`--adapter` and `--adapter-files`, as `export`, `add` and `verify` have them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import count
from pathlib import Path

import click

from lora_core.adapters.names import name_problem, safe_name
from lora_core.adapters.reference import AdapterReference, parse_references
from lora_core.errors import Problem, UsageError
from lora_core.specs import ReservedNames

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


def references(texts: Sequence[str], files: Sequence[tuple[str, Path, Path]]) -> tuple[AdapterReference, ...]:
    """Return the adapters given by both options; raises `UsageError` with every problem."""
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
    return tuple(found)


def package_references(texts: Sequence[str]) -> tuple[AdapterReference, ...]:
    """Return the packages given as `FILE` or `NAME=FILE`; raises `AdapterError` for a FILE that is none."""
    if not texts:
        return ()
    from lora_core.pipeline.packing import package_reference  # most calls take no packages

    found = []
    for text in texts:
        name, equals, file = text.partition("=")
        named = bool(equals) and name.isidentifier()
        found.append(package_reference(Path(file if named else text), name if named else None))
    return tuple(found)


def each_directory(
    parent: Path, *, taken: Sequence[str] = (), reserved: ReservedNames | None = None
) -> tuple[AdapterReference, ...]:
    """Return an adapter for each subdirectory of `parent` in order, called as it, or by a safe name made from it.

    Made names are other than each other, those of the other directories and those `taken`; `reserved` are kept by the
    bundle's backend. Raises `UsageError` if there is none.
    """
    if not parent.is_dir():
        raise UsageError(f"There is no directory {str(parent)!r}", remedy="--from-dir takes a directory of adapters.")
    paths = sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not paths:
        raise UsageError(f"Directory {str(parent)!r} holds no adapters", remedy="Each subdirectory is one adapter.")
    kept = reserved or ReservedNames()
    good = {path.name for path in paths if name_problem(path.name, kept) is None}
    used = {name.lower() for name in (*good, *taken)}
    found = []
    for path in paths:
        name = path.name if path.name in good else _unused(safe_name(path.name, kept), used)
        used.add(name.lower())
        found.append(AdapterReference(name=name, directory=path))
    return tuple(found)


def renamed(references: Sequence[AdapterReference]) -> Iterator[str]:
    """Say which of `each_directory`'s adapters are called otherwise than their directories."""
    for reference in references:
        if reference.directory is not None and reference.directory.name != reference.name:
            yield f"{reference.directory} -> {reference.name}"


def _unused(name: str, used: Collection[str]) -> str:
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name.lower() not in used else next(each for each in numbered if each.lower() not in used)
