"""Where a fleet's adapters come from: a directory of this machine, or any place that fsspec reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.reference import AdapterReference
from lora_core.bundle.durable import storage_errors
from lora_core.bundle.paths import why_unsafe
from lora_core.errors import AdapterError, StorageError, UnsupportedError, UsageError
from lora_core.pipeline.sources import FILES, SourcedAdapter, find_adapters, names_of, reference_to
from lora_core.specs import ReservedNames
from lora_core.temporary import temporary_directory

_CONFIG = "adapter_config.json"
# What services call the state of an object; the first that an entry has counts.
_STATES = ("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime", "LastModified", "last_modified", "updated")


@attrs.frozen(kw_only=True)
class FleetAdapter:
    """An adapter of a source. `place` is its path below the source, `files` are those that it has below `location` (a
    path or a URL), `signature` stands for their sizes and times, None where nothing tells of changes.
    """

    name: str
    place: str
    location: str
    files: tuple[str, ...]
    signature: str | None
    remote: bool = False

    @contextmanager
    def at_hand(self) -> Iterator[AdapterReference]:
        """Give the adapter as files of this machine; those of another place are copied for as long as it takes."""
        if not self.remote:
            yield reference_to(self.name, Path(self.location))
            return
        with temporary_directory("fleet") as scratch:
            yield reference_to(self.name, self._fetched(scratch))

    def _fetched(self, scratch: Path) -> Path:
        url_to_fs = _fsspec()
        alone = self.files == ("",)
        try:
            system, root = url_to_fs(self.location)
            for file in self.files:
                target = scratch / (PurePosixPath(root).name if alone else file)
                target.parent.mkdir(parents=True, exist_ok=True)
                where = root if alone else f"{root.rstrip('/')}/{file}"
                with system.open(where, "rb") as source, target.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
        except Exception as error:  # every service has errors of its own
            what = f"The adapter cannot be fetched: {type(error).__name__}: {error}"
            raise AdapterError(what, where=self.location, remedy="Run the command again.") from error
        return scratch / PurePosixPath(root).name if alone else scratch


def is_url(source: str) -> bool:
    """Say whether `source` is a URL rather than a path."""
    return "://" in source


def fleet_adapters(source: str, formats: Sequence[AdapterFormat], reserved: ReservedNames) -> tuple[FleetAdapter, ...]:
    """Return every adapter below `source`, in the order of their places.

    Raises `UsageError` if there is none, `UnsupportedError` where fsspec or what it needs for a URL is not installed,
    `StorageError`.
    """
    if is_url(source):
        return tuple(_remote(source, reserved))
    found = find_adapters(Path(source), formats, reserved)
    with storage_errors("read", Path(source)):
        root = os.path.realpath(source)
        return tuple(_local(each, root if each.place == "." else f"{root}/{each.place}") for each in found)


def _local(found: SourcedAdapter, location: str) -> FleetAdapter:
    files = {".": found.path.stat()} if found.path.is_file() else dict(_files(location))
    told = [
        (file, files[file].st_size, files[file].st_mtime_ns, files[file].st_ctime_ns)
        for file in sorted(files, key=lambda file: file.split("/"))
    ]
    return FleetAdapter(
        name=found.name,
        place=found.place,
        location=location,
        files=tuple(each[0] for each in told),
        signature=_signature(told),
    )


def _files(directory: str, above: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Yield every file below `directory` by its path there; links to directories are not followed."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path, f"{above}{entry.name}/")
            elif entry.is_file():
                yield f"{above}{entry.name}", entry.stat()


def _remote(source: str, reserved: ReservedNames) -> Iterator[FleetAdapter]:
    url_to_fs = _fsspec()
    try:
        system, root = url_to_fs(source)
        entries: Mapping[str, Mapping[str, Any]] = system.find(root, detail=True)
    except ImportError as error:
        raise UnsupportedError(f"This URL needs a library: {error}", where=source, remedy="Install it.") from error
    except Exception as error:  # every service has errors of its own
        what = f"The source cannot be listed: {type(error).__name__}: {error}"
        raise StorageError(what, where=source, remedy="Check the URL, and that it can be read from here.") from error
    below = {_below(path, root): entry for path, entry in entries.items()}
    found = dict(_grouped({file: entry for file, entry in below.items() if not _hidden(file)}))
    if not found:
        what = f"There is no adapter below {source!r}"
        raise UsageError(what, remedy=f"An adapter is a directory with {_CONFIG}, or a file of {', '.join(FILES)}.")
    names = names_of(sorted(found), PurePosixPath(root).stem, reserved)
    for place in sorted(found):
        told = [(file, entry.get("size"), _state(entry)) for file, entry in sorted(found[place].items())]
        yield FleetAdapter(
            name=names[place],
            place=place,
            location=source if place == "." else f"{source.rstrip('/')}/{place}",
            files=tuple(each[0] for each in told),
            signature=None if any(state is None for _, _, state in told) else _signature(told),
            remote=True,
        )


def _grouped(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Yield adapters as place and files: directories with a configuration, and files that are whole adapters."""
    places = {file.rpartition("/")[0] for file in entries if file.rpartition("/")[2] == _CONFIG}
    for place in places:
        above = f"{place}/" if place else ""
        files = {file.removeprefix(above): entry for file, entry in entries.items() if file.startswith(above)}
        inner = tuple(f"{other}/".removeprefix(above) for other in places if other != place)
        own = {file: entry for file, entry in files.items() if not file.startswith(inner) and not why_unsafe(file)}
        yield place or ".", own
    for file, entry in entries.items():
        if file.endswith(FILES) and not any(file.startswith(f"{place}/" if place else "") for place in places):
            yield file, {"": entry}


def _hidden(file: str) -> bool:
    return any(part.startswith(".") for part in file.split("/"))


def _below(path: str, root: str) -> str:
    return path.strip("/").removeprefix(root.strip("/")).lstrip("/")


def _state(entry: Mapping[str, Any]) -> str | None:
    return next((str(entry[name]) for name in _STATES if entry.get(name) is not None), None)


def _signature(told: Sequence[tuple[object, ...]]) -> str:
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _fsspec() -> Any:
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        what = "Reading adapters from a URL needs the library `fsspec`."
        raise UnsupportedError(what, remedy="Install the extra: pip install 'lora-core[remote]'.") from error
    return url_to_fs
