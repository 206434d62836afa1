"""A job's place in the template cache: what is there is used, what was lowered is kept, and trouble is told."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import attrs

from lora_core.errors import LoraCoreError
from lora_core.events import Emit, Warned, stage
from lora_core.template_cache.storage import DamagedTemplateError, read_kept, write_kept


class Keepable(Protocol):
    """Lowered programs without weights."""

    @classmethod
    def from_kept(cls, directory: Path, content: Mapping[str, Any]) -> Self:
        """Read the files in `directory`, and what `to_kept` gave beside them.

        Raises `LoraCoreError`, `OSError`, `ValueError`, `KeyError` or `TypeError` if they do not belong together.
        """
        ...

    def to_kept(self) -> tuple[Mapping[str, bytes], Mapping[str, Any]]:
        """Return files by name, and the rest as JSON values."""
        ...


KeptKind = TypeVar("KeptKind", bound=Keepable)


@attrs.frozen(kw_only=True)
class KeptTemplates:
    """The directory in which lowered programs of one identity are kept."""

    directory: Path

    def read(self, kind: type[KeptKind], emit: Emit) -> KeptKind | None:
        """Return what is kept, None if nothing is; what is damaged is warned of and removed."""
        if not self.directory.is_dir():
            return None
        try:
            return _read(self.directory, kind)
        except DamagedTemplateError as error:
            emit(Warned(message=f"The cache entry {self.directory} is damaged and is built anew: {error}"))
            shutil.rmtree(self.directory)
            return None

    def keep(self, programs: Keepable, emit: Emit) -> None:
        """Keep `programs`; a directory that cannot be written is warned of."""
        with stage(emit, "Keep the lowered programs in the cache"):
            try:
                write_kept(self.directory, *programs.to_kept())
            except OSError as error:
                emit(Warned(message=f"The lowered programs could not be kept in the cache {self.directory}: {error}"))


def _read(directory: Path, kind: type[KeptKind]) -> KeptKind:
    content = read_kept(directory)
    try:
        return kind.from_kept(directory, content)
    except (LoraCoreError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedTemplateError(f"{type(error).__name__}: {error}") from error
