"""The index of a fleet: which package was made of what, so that what is done is not done again.

`index.jsonl` has a line for each adapter, under a line that says what it is. A run appends what it has done and at its
end writes the lines anew, by place; what a killed run left half of a line is done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import attrs

from lora_core.adapters.names import is_name
from lora_core.adapters.packages.header import SUFFIX
from lora_core.bundle.durable import storage_errors, write_whole
from lora_core.errors import InputError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import TABLE
from lora_core.intake.plain_json import parse_json

INDEX = "index.jsonl"
FORMAT = "lora-core fleet"
VERSION = 1
_BYTES = "backslashreplace"
"""How places are written whose names are no text: their adapters are packed anew each time."""


@attrs.frozen(kw_only=True)
class IndexEntry:
    """An adapter that was packed: `key` stands for all that decides the package's bytes (adapter, template, lora-core),
    `work` for all of it but the adapter, `signature` for what the adapter's files looked like from outside (sizes,
    times), None where that does not tell. `digest` is the package's own.
    """

    place: str
    name: str
    key: str
    work: str
    signature: str | None
    adapter: str
    package: str
    size: int
    digest: str


@attrs.define(kw_only=True)
class FleetIndex:
    """The entries by place."""

    path: Path
    entries: dict[str, IndexEntry]
    _file: IO[str] | None = None

    @classmethod
    def read(cls, path: Path) -> FleetIndex:
        """Read the index at `path`; none is an empty one. Raises `InputError` for what is no index or a newer one."""
        entries: dict[str, IndexEntry] = {}
        if os.path.lexists(path):
            with storage_errors("read", path):
                head, *lines = read_regular(path, TABLE, InputError, links=False).split(b"\n")
            _require_known(head, path)
            for line in lines:
                if (entry := _entry(line)) is not None:
                    entries[entry.place] = entry
        return cls(path=path, entries=entries)

    def add(self, entries: Iterable[IndexEntry]) -> None:
        """Append entries; they are there from now on, whatever becomes of this process."""
        with storage_errors("write", self.path):
            if self._file is None:
                self.write()
                self._file = self.path.open("a", encoding="utf-8", errors=_BYTES)
            for entry in entries:
                self.entries[entry.place] = entry
                self._file.write(_line(attrs.asdict(entry)))
            self._file.flush()

    def write(self) -> None:
        """Write the whole index anew."""
        self.close()
        lines = [attrs.asdict(self.entries[place]) for place in sorted(self.entries)]
        write_whole(
            self.path,
            [_line(each).encode("utf-8", _BYTES) for each in ({"format": FORMAT, "version": VERSION}, *lines)],
        )

    def close(self) -> None:
        """Close the file that `add` keeps open."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"


def _require_known(head: bytes, path: Path) -> None:
    try:
        told = parse_json(head)
    except ValueError:
        told = None
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        raise InputError("This is no index of a fleet.", where=str(path), remedy="Choose another directory.")
    if told.get("version") != VERSION:
        what = f"The index has version {told.get('version')!r}; this lora-core reads {VERSION}."
        raise InputError(what, where=str(path), remedy="Update lora-core, or choose another directory.")


def _entry(line: bytes) -> IndexEntry | None:
    """Return the entry of a line, None for one that a killed run left, or that is none of ours."""
    try:
        told = parse_json(line)
        entry = IndexEntry(**told)
    except (ValueError, TypeError):
        return None
    texts = [value for field, value in told.items() if field not in ("size", "signature")]
    fits = all(type(text) is str for text in texts) and type(entry.size) is int
    # Files are written and deleted by this name, and never elsewhere.
    named = fits and is_name(entry.name) and entry.package == f"{entry.name}{SUFFIX}"
    return entry if named and type(entry.signature) in (str, type(None)) else None
