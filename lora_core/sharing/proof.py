"""Is the base the one that was recorded, and stored once? The one place that answers, from stored bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from lora_core.bundle.bundle import Bundle
from lora_core.errors import BundleError, Problem

if TYPE_CHECKING:
    from lora_core.sharing.report import SharingReport


def foundation_problems(bundle: Bundle, stored: str | None = None, *, adapter: str | None = None) -> Iterator[Problem]:
    """Yield what is wrong with the foundation and with what adapters were linked against.

    `stored` is its fingerprint as taken from the stored bytes (None: do not look), `adapter` the only adapter to look
    at (None: all).
    """
    recorded, where = bundle.manifest.foundation, str(bundle.path)
    if stored not in (None, recorded):
        what = f"The stored foundation has fingerprint {stored}, the manifest says {recorded}"
        yield Problem(what=what, where=where, remedy="Restore the foundation that was exported.")
    record = None if adapter is None else bundle.record(adapter)
    looked_at = bundle.manifest.adapters if adapter is None else [record.adapter] if record is not None else []
    for each in looked_at:
        if each.foundation != recorded:
            what = f"Adapter {each.name!r} was linked against foundation {each.foundation}, not {recorded}"
            yield Problem(what=what, where=where, remedy="Remove it and add it again from its source.")


def require_foundation(bundle: Bundle, stored: str | None = None, *, adapter: str | None = None) -> None:
    """Raise `BundleError` with the `foundation_problems`, if there are any."""
    problems = tuple(foundation_problems(bundle, stored, adapter=adapter))
    if problems:
        raise BundleError(problems)


def duplicate_problems(bundle: Bundle, report: SharingReport) -> Iterator[Problem]:
    """Yield a problem for bytes of the base that are stored more than once."""
    base = next((method.name for method in bundle.manifest.methods if method.adapter is None), "")
    for duplicate in report.duplicates_of(base):
        places = ", ".join(f"{file} at {offset}" for file, offset, _ in duplicate.places)
        what = f"{duplicate.size} bytes of the base are stored {len(duplicate.places)} times: {places}"
        yield Problem(what=what, where=str(bundle.path), remedy="Export the bundle again.")
