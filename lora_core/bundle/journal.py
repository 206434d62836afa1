"""The journal: a committed change whose files are not all at their places yet.

A journal may come with a bundle from a stranger. What is in it is held against the manifests before anything is
touched: whoever wrote it can do to the bundle what its author could do anyway, and nothing outside.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from lora_core.bundle.bundle import Manifest
from lora_core.bundle.hashing import file_sha256
from lora_core.bundle.manifest import loads
from lora_core.bundle.paths import MANIFEST, why_unsafe
from lora_core.bundle.places import Places, foreign_journal
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
        old = _manifest(root / MANIFEST)
        new = _manifest(journal / MANIFEST) if pending else old
        removed = _removed(journal / REMOVED) if pending else ()
    except BundleError as error:
        raise foreign_journal(journal, str(error.problems[0].what).rstrip(".")) from error
    if (wrong := _wrong_files(journal / FILES, root, files, old, new) or _wrong_names(removed, old, new)) is not None:
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


def _manifest(path: Path) -> Manifest:
    try:
        return loads(read_regular(path, limits.MANIFEST, BundleError, links=False), str(path))
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


def _wrong_files(files: Path, root: Path, names: tuple[str, ...], old: Manifest, new: Manifest) -> str | None:
    listed = {artifact.path: artifact for artifact in new.artifacts}
    own = {artifact.path for artifact in old.artifacts}
    places = Places(root)
    for name in names:
        if name not in listed:
            return f"{name!r} is not a file of its manifest"
        if file_sha256(files / name) != listed[name].sha256:
            return f"{name!r} is not the file that its manifest lists"
        if (linked := places.linked(name)) is not None:
            return linked.what
        if name not in own and os.path.lexists(root / name):
            return f"{name!r} would replace a file that the bundle does not list"
    return None


def _wrong_names(removed: tuple[str, ...], old: Manifest, new: Manifest) -> str | None:
    old_paths, new_paths = ({artifact.path for artifact in each.artifacts} for each in (old, new))
    for name in removed:
        if (unsafe := why_unsafe(name)) is not None:
            return f"{name!r}, which is to be deleted, {unsafe}"
        if name not in old_paths or name in new_paths:
            return f"{name!r} is to be deleted, which is not a file of the old manifest alone"
    return None
