"""References become adapters, with the problems of all of them reported together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.composites import compose
from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.grouping import grouped
from lora_core.adapters.names import name_problems
from lora_core.adapters.reference import AdapterReference, CompositePart, parse_references
from lora_core.errors import AdapterError, Problem, UsageError
from lora_core.layers import ModelSummary
from lora_core.specs import ReservedNames

__all__ = ["AdapterReference", "CompositePart", "parse_references", "read_adapters"]


def read_adapters(
    references: Sequence[AdapterReference],
    base: ModelSummary,
    formats: Sequence[AdapterFormat],
    *,
    taken: Iterable[str] = (),
    reserved: ReservedNames | None = None,
) -> tuple[Adapter, ...]:
    """Read every reference for `base`, in their order; composites are made of what is read.

    The surest of `formats` reads a path, of equally sure ones the first. `taken` are names that a bundle already uses,
    `reserved` those that its backend keeps for itself. Raises `UsageError` for names and composites that cannot be,
    before anything is read; then `AdapterError` with the problems of all adapters together, each cause told
    once.
    """
    problems = [
        *name_problems([reference.name for reference in references], taken=taken, reserved=reserved or ReservedNames()),
        *_composite_problems(references),
    ]
    if problems:
        raise UsageError(problems)
    reader = _Reader(base=base, formats=tuple(formats))
    stored = {each.name: reader.read(each) for each in references if not each.parts}
    composed = {each.name: reader.combine(each, stored) for each in references if each.parts}
    if reader.problems:
        raise AdapterError(grouped(reader.problems))
    adapters = [stored.get(each.name) or composed.get(each.name) for each in references]
    return tuple(adapter for adapter in adapters if adapter is not None)


@attrs.define(kw_only=True)
class _Reader:
    """Reads adapters and keeps the problems; None stands for an adapter that has some."""

    base: ModelSummary
    formats: Sequence[AdapterFormat]
    problems: list[Problem] = attrs.field(factory=list)

    def read(self, reference: AdapterReference) -> Adapter | None:
        adapter = self._read(reference)
        if adapter is not None and adapter.fitted_for is not None and reference.strength != 1:
            self.problems.append(_fitted_whole(reference.name, adapter, f"have strength {reference.strength:g}"))
            return None
        return adapter

    def _read(self, reference: AdapterReference) -> Adapter | None:
        try:
            if reference.weights is not None and reference.config is not None:
                files = (reference.weights, reference.config)
                surest = max(self.formats, key=lambda each: each.sniff_files(*files))
                return surest.read_files(reference.name, *files, self.base, strength=reference.strength)
            if reference.package is not None:
                from lora_core.adapters.packages.reading import AdapterPackage  # most adapters are none

                package = AdapterPackage.open(reference.package)
                return package.adapter(reference.name, self.base, strength=reference.strength)
            directory = reference.directory or Path()
            return self._directory(reference.name, directory, reference.strength)
        except AdapterError as error:
            self.problems += error.problems
        return None

    def combine(self, reference: AdapterReference, stored: Mapping[str, Adapter | None]) -> Adapter | None:
        parts = [(self._part(reference, part, stored), part.strength) for part in reference.parts]
        adapters = [(adapter, strength * reference.strength) for adapter, strength in parts if adapter is not None]
        fitted = [adapter for adapter, _ in adapters if adapter.fitted_for is not None]
        self.problems += [_fitted_whole(reference.name, adapter, "be part of a composite") for adapter in fitted]
        if fitted or len(adapters) < len(parts):
            return None
        try:
            return compose(reference.name, adapters)
        except AdapterError as error:
            self.problems += error.problems
        return None

    def _part(
        self, reference: AdapterReference, part: CompositePart, stored: Mapping[str, Adapter | None]
    ) -> Adapter | None:
        if not part.is_directory:
            return stored[part.of]
        try:
            return self._directory(reference.name, Path(part.of), 1.0)
        except AdapterError as error:
            self.problems += error.problems
        return None

    def _directory(self, name: str, path: Path, strength: float) -> Adapter:
        surest = max(self.formats, key=lambda each: each.sniff(path))
        if not surest.sniff(path):
            raise AdapterError(_unrecognised(name, path))
        return surest.read(name, path, self.base, strength=strength)


def _composite_problems(references: Sequence[AdapterReference]) -> list[Problem]:
    by_name = {reference.name: reference for reference in references}
    problems = []
    for reference in references:
        for part in reference.parts:
            if part.is_directory:
                continue
            if part.of not in by_name:
                what = f"Composite {reference.name!r} names {part.of!r}, which is not given in this command"
                remedy = (
                    f"Add --adapter {part.of}=DIR, or write its directory in place of the name: ./DIR:{part.strength}"
                )
                problems.append(Problem(what=what, remedy=f"{remedy}."))
            elif by_name[part.of].parts:
                what = f"Composite {reference.name!r} names {part.of!r}, which is a composite itself"
                problems.append(Problem(what=what, remedy="Name the parts of that one instead."))
    return problems


def _fitted_whole(name: str, adapter: Adapter, wish: str) -> Problem:
    return Problem(
        what=f"Adapter {name!r} was fitted to a rounded base as a whole, so it cannot {wish}: what it makes up for is "
        "there once",
        where=adapter.source,
        remedy="Fit what you want, from its directory `original`: lora-core fit-adapter takes strengths and "
        "composites.",
    )


def _unrecognised(name: str, path: Path) -> Problem:
    if not path.exists():
        return Problem(what=f"Adapter {name!r}: There is no such directory", where=str(path))
    if not path.is_dir():
        remedy = "Give the directory, or both files: NAME=WEIGHTS.safetensors,CONFIG.json."
        return Problem(what=f"Adapter {name!r}: This is a file", where=str(path), remedy=remedy)
    inner = sorted(child.parent.name for child in path.glob("*/adapter_config.json"))
    remedy = f"Did you mean {path / inner[-1]}?" if inner else "An adapter has adapter_config.json and its weights."
    return Problem(what=f"Adapter {name!r}: This directory holds no adapter", where=str(path), remedy=remedy)
