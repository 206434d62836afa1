"""A job's place in the template cache: what is there is used, what was lowered is kept, and trouble is told."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import attrs

from lora_core.backend import ExportJob
from lora_core.errors import BundleError
from lora_core.events import Emit, Warned, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.cache.key import cache_key
from lora_core_xnnpack.cache.store import DamagedEntryError, read_entry, write_entry


class Weightless(Protocol):
    """Lowered programs without weights, which an entry holds."""

    @classmethod
    def from_entry(cls, directory: Path, content: Mapping[str, Any]) -> Self:
        """Read the files in `directory`, and what `to_entry` gave beside them.

        Raises `BundleError`, `OSError`, `ValueError`, `KeyError` or `TypeError` if they do not belong together.
        """
        ...

    def to_entry(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Return the files of an entry, and the rest of it as JSON values."""
        ...


Kind = TypeVar("Kind", bound=Weightless)


@attrs.frozen(kw_only=True)
class CacheEntry:
    """Where a job's lowered programs are kept."""

    directory: Path

    @classmethod
    def of(cls, job: ExportJob, base: BaseModel) -> CacheEntry | None:
        """Return the job's place, None without a cache; the weights of `base` need not be there."""
        return cls(directory=job.cache / cache_key(job, base)) if job.cache else None

    def read(self, kind: type[Kind], emit: Emit) -> Kind | None:
        """Return what is kept, None if nothing is; a damaged entry is warned of and removed."""
        if not self.directory.is_dir():
            return None
        try:
            return _read(self.directory, kind)
        except DamagedEntryError as error:
            emit(Warned(message=f"The cache entry {self.directory} is damaged and is built anew: {error}"))
            shutil.rmtree(self.directory)
            return None

    def keep(self, weightless: Weightless, emit: Emit) -> None:
        """Keep lowered programs for the next time; what prevents it is warned of."""
        with stage(emit, "Keep the lowered programs in the cache"):
            try:
                write_entry(self.directory, *weightless.to_entry())
            except OSError as error:
                emit(Warned(message=f"The lowered programs could not be kept in the cache {self.directory}: {error}"))


def _read(directory: Path, kind: type[Kind]) -> Kind:
    content = read_entry(directory)
    try:
        return kind.from_entry(directory, content)
    except (OSError, ValueError, KeyError, TypeError, BundleError) as error:
        raise DamagedEntryError(f"{type(error).__name__}: {error}") from error
