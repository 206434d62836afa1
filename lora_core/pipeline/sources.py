"""Sources of adapters: a directory, and whatever adapters and packages are anywhere below it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.format import AdapterFormat, Claim
from lora_core.adapters.names import safe_name
from lora_core.adapters.packages.header import SUFFIX
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.durable import storage_errors
from lora_core.errors import UsageError
from lora_core.specs import ReservedNames

FILES = (SUFFIX, ".gguf")
"""Endings of adapters that are one file."""


@attrs.frozen(kw_only=True)
class SourcedAdapter:
    """An adapter of a source: `place` is its path below the source with forward slashes ("." for the source itself)."""

    name: str
    place: str
    path: Path

    @property
    def reference(self) -> AdapterReference:
        """How the pipeline refers to it."""
        return reference_to(self.name, self.path)


def reference_to(name: str, path: Path) -> AdapterReference:
    """Return the reference to what a source has at `path`: a package, or an adapter of any format."""
    if path.suffix == SUFFIX:
        return AdapterReference(name=name, package=path)
    return AdapterReference(name=name, directory=path)


def find_adapters(
    source: Path, formats: Sequence[AdapterFormat], reserved: ReservedNames | None = None
) -> tuple[SourcedAdapter, ...]:
    """Return every adapter below `source` in the order of their places; hidden directories and links are left out.

    A directory that any of `formats` claims is one adapter. Names are as `names_of` gives them. Raises `UsageError` if
    there is none, `StorageError`.
    """
    if not source.exists():
        raise UsageError(f"There is no directory {str(source)!r}", remedy="Give a directory of adapters.")
    with storage_errors("read", source):
        found = {path.relative_to(source).as_posix(): path for path in _below(source, formats)}
    if not found:
        what = f"There is no adapter below {str(source)!r}"
        raise UsageError(what, remedy="An adapter is a directory with its configuration and weights, or a package.")
    names = names_of(sorted(found), source.resolve().stem, reserved or ReservedNames())
    return tuple(SourcedAdapter(name=names[place], place=place, path=found[place]) for place in sorted(found))


def names_of(places: Sequence[str], source: str, reserved: ReservedNames) -> dict[str, str]:
    """Return a name for each place, made of its path; those that would be one (but for case) have some digits of their
    places' hashes. What an adapter is called depends on no other that is called otherwise.
    """
    made = {place: safe_name(_without_suffix(place if place != "." else source), reserved) for place in places}
    times = Counter(name.lower() for name in made.values())
    return {
        place: f"{name[:49]}_{hashlib.sha256(place.encode()).hexdigest()[:6]}" if times[name.lower()] > 1 else name
        for place, name in made.items()
    }


def _without_suffix(place: str) -> str:
    return next((place.removesuffix(suffix) for suffix in FILES if place.endswith(suffix)), place)


def _below(path: Path, formats: Sequence[AdapterFormat]) -> Iterator[Path]:
    if path.is_file():
        if path.suffix in FILES:
            yield path
    elif any(each.sniff(path) is not Claim.NO for each in formats):
        yield path
    elif path.is_dir():
        for inner in sorted(path.iterdir()):
            if not inner.name.startswith(".") and not inner.is_symlink():
                yield from _below(inner, formats)
