"""Cache entries on disk: written whole or not at all, checked by hash when read."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import BundleError
from lora_core_xnnpack.cache.forms import Form
from lora_core_xnnpack.cache.weightless import BaseTensor, Weightless, WeightlessProgram
from lora_core_xnnpack.link import Template
from lora_core_xnnpack.named_blobs import TensorLayout
from lora_core_xnnpack.relocations import KeySite

SCHEMA_VERSION = 1
_INDEX = "entry.json"
PlannedMemory = Mapping[str, Mapping[str, int]]


class DamagedEntryError(Exception):
    """A cache entry is not what was written; the text says what is wrong."""


@attrs.frozen(kw_only=True)
class Entry:
    """What a cache entry holds: lowered programs without weights, and the memory they plan, by program and method."""

    weightless: Weightless
    planned_memory: PlannedMemory


def write_entry(directory: Path, entry: Entry) -> None:
    """Write `entry` as `directory`; if another process was first, its entry stays. Raises `OSError`."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        _write_files(staging, entry)
        staging.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_entry(directory: Path) -> Entry | None:
    """Read the entry at `directory`, None if there is none; raises `DamagedEntryError` if it cannot be used."""
    if not directory.is_dir():
        return None
    try:
        text = (directory / _INDEX).read_text("utf-8")
        document = json.loads(text)
        if document["schema_version"] != SCHEMA_VERSION or document["sha256"] != _digest(document):
            raise DamagedEntryError(f"{_INDEX} does not match its hash")
        for name, expected in document["files"].items():
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != expected:
                raise DamagedEntryError(f"{name} does not match its hash")
        return _entry(directory, document)
    except (OSError, ValueError, KeyError, TypeError, BundleError) as error:
        raise DamagedEntryError(f"{type(error).__name__}: {error}") from error


def _write_files(staging: Path, entry: Entry) -> None:
    files: dict[str, str] = {}
    programs = []
    for index, program in enumerate(entry.weightless.programs):
        contents = {
            f"{index}.pte": program.template.program,
            f"{index}.json": program.template.table.to_json().encode("utf-8"),
        }
        for name, content in contents.items():
            (staging / name).write_bytes(content)
            files[name] = hashlib.sha256(content).hexdigest()
        programs.append([[tensor, [[site.segment, site.offset] for site in sites]] for tensor, sites in program.sites])
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "foundation": [attrs.asdict(tensor) for tensor in entry.weightless.foundation],
        "programs": programs,
        "planned_memory": {name: dict(methods) for name, methods in entry.planned_memory.items()},
        "files": files,
    }
    document["sha256"] = _digest(document)
    (staging / _INDEX).write_text(json.dumps(document), "utf-8")


def _digest(document: Mapping[str, Any]) -> str:
    content = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("utf-8")).hexdigest()


def _entry(directory: Path, document: Mapping[str, Any]) -> Entry:
    programs = tuple(
        WeightlessProgram(
            template=Template.read(directory / f"{index}.pte", directory / f"{index}.json"),
            sites=tuple(
                (tensor, tuple(KeySite(segment=segment, offset=offset) for segment, offset in sites))
                for tensor, sites in found
            ),
        )
        for index, found in enumerate(document["programs"])
    )
    foundation = tuple(_tensor(tensor) for tensor in document["foundation"])
    return Entry(
        weightless=Weightless(foundation=foundation, programs=programs), planned_memory=document["planned_memory"]
    )


def _tensor(document: Mapping[str, Any]) -> BaseTensor:
    layout = document["layout"]
    return BaseTensor(
        form=Form(**document["form"]),
        name=document["name"],
        prefix=document["prefix"],
        layout=None
        if layout is None
        else TensorLayout(
            scalar_type=layout["scalar_type"], sizes=tuple(layout["sizes"]), dim_order=tuple(layout["dim_order"])
        ),
    )
