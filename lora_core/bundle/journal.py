"""The journal: a committed change whose files are not all at their places yet.

A journal may come with a bundle from a stranger. What is in it is held against the manifests before anything is
touched: whoever wrote it can do to the bundle what its author could do anyway, and nothing outside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from lora_core.bundle.bundle import Manifest
from lora_core.bundle.differences import BundleDifference
from lora_core.bundle.hashing import file_sha256
from lora_core.bundle.manifest import Whereabouts, loads
from lora_core.bundle.paths import MANIFEST, is_records_file, prefix_of, why_unsafe
from lora_core.bundle.places import Places, foreign_journal
from lora_core.bundle.records import Records
from lora_core.errors import BundleError
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.intake.plain_json import parse_json

FILES = "files"
REMOVED = "removed.json"


@attrs.frozen(kw_only=True)
class Journal:
    """What is left to do: `files` to move and names to delete, both relative to the bundle."""

    files: tuple[str, ...]
    removed: tuple[str, ...]


def read_journal(journal: Path, root: Path) -> Journal:
    """Return what the journal of the bundle at `root` has left to do, if all of it is this bundle's own business.

    Files must be those of the journal's manifest, by hash, and replace nothing but the old manifest's files; names to
    delete must be the old manifest's and not the new one's. A manifest that was moved already is the bundle's: it is
    moved last. Raises `BundleError` with nothing changed.
    """
    files = tuple(_files(journal))
    pending = os.path.lexists(journal / MANIFEST)
    try:
        old = _manifest(root / MANIFEST, Whereabouts(root=root))
        whereabouts = Whereabouts(root=root, pending=journal / FILES)
        new = _manifest((journal if pending else root) / MANIFEST, whereabouts)
        removed = _removed(journal / REMOVED) if pending else ()
        wrong = _wrong_records(files, removed, new.records) or _wrong_places(files, removed, root)
        # Records go last. Once some went, those of the bundle are in part the old ones and in part the new, and tell
        # nothing: there must be nothing else left to do then.
        artifacts = [name for name in files if not is_records_file(name)]
        unwanted = [name for name in removed if not is_records_file(name)]
        if wrong is None and (artifacts or any(os.path.lexists(root / name) for name in unwanted)):
            changes = BundleDifference.of(old, new)
            wrong = _wrong_files(journal / FILES, root, artifacts, changes) or _wrong_names(root, unwanted, changes)
    except BundleError as error:
        raise foreign_journal(journal, str(error.problems[0].what).rstrip(".")) from error
    if wrong is not None:
        raise foreign_journal(journal, wrong)
    return Journal(files=files, removed=removed)


def _files(journal: Path) -> Iterator[str]:
    """Yield the files below `files/`, no link followed; raises `BundleError` for anything but files and directories."""
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            entries = sorted(os.scandir(journal / FILES / directory), key=lambda entry: entry.name)
        except FileNotFoundError:
            continue
        for entry in entries:
            name = f"{directory}{entry.name}"
            mode = entry.stat(follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                pending.append(f"{name}/")
            elif stat.S_ISREG(mode):
                yield name
            else:
                raise foreign_journal(journal, f"{name!r} is neither a file nor a directory")


def _manifest(path: Path, whereabouts: Whereabouts) -> Manifest:
    try:
        return loads(read_regular(path, limits.MANIFEST, BundleError, links=False), str(path), whereabouts)
    except OSError as error:
        raise BundleError(f"The manifest cannot be read: {error}") from error


def _removed(listing: Path) -> tuple[str, ...]:
    if not os.path.lexists(listing):
        return ()
    try:
        names = parse_json(read_regular(listing, limits.MANIFEST, BundleError, links=False))
    except ValueError as error:
        raise BundleError(f"{REMOVED} cannot be read: {error}") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BundleError(f"{REMOVED} holds no list of names")
    return tuple(names)


def _wrong_records(files: Iterable[str], removed: Iterable[str], new: Records) -> str | None:
    for name in filter(is_records_file, files):
        branch = new.branch(prefix_of(name))
        if branch is None:
            return f"{name!r} is not a file of its manifest"
        new.open(branch)
    for name in filter(is_records_file, removed):
        if new.branch(prefix_of(name)) is not None:
            return f"{name!r} is to be deleted, which is a file of the new manifest"
    return None


def _wrong_places(files: Iterable[str], removed: Iterable[str], root: Path) -> str | None:
    for name in removed:
        if not is_records_file(name) and (unsafe := why_unsafe(name)) is not None:
            return f"{name!r}, which is to be deleted, {unsafe}"
    places = Places(root)
    for name in (*files, *removed):
        if (linked := places.linked(name)) is not None:
            return linked.what
    return None


def _wrong_files(files: Path, root: Path, names: Iterable[str], changes: BundleDifference) -> str | None:
    for name in names:
        if name not in changes.new:
            return f"{name!r} is not a file of its manifest"
        if file_sha256(files / name) != changes.new[name].sha256:
            return f"{name!r} is not the file that its manifest lists"
        if name not in changes.old and os.path.lexists(root / name):
            return f"{name!r} would replace a file that the bundle does not list"
    return None


def _wrong_names(root: Path, names: Iterable[str], changes: BundleDifference) -> str | None:
    for name in names:
        if os.path.lexists(root / name) and name not in changes.removed:
            return f"{name!r} is to be deleted, which is not a file of the old manifest alone"
    return None
