"""Changing a bundle so that it is always the old one or the new one, whatever is killed and whenever.

New files and the new manifest are written to `.lora-core/staging`. Renaming that directory to `.lora-core/journal` is
the commit: before it the bundle is the old one and the staging area is rubbish; after it the bundle is the new one, and
whoever opens it next finishes the moves. Every step of finishing can be repeated. All of it happens under the lock.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

from lora_core.bundle.bundle import Bundle, Manifest
from lora_core.bundle.differences import BundleDifference
from lora_core.bundle.durable import (
    flush_directory,
    flush_tree,
    storage_error,
    storage_errors,
    walk,
)
from lora_core.bundle.exchange import restore
from lora_core.bundle.journal import FILES, REMOVED, Journal, read_journal
from lora_core.bundle.lock import locked
from lora_core.bundle.manifest import Whereabouts, dumps, loads
from lora_core.bundle.paths import JOURNAL, MANIFEST, STAGING, STATE, is_records_file
from lora_core.bundle.places import Places, require_plain_state
from lora_core.errors import BundleError, LoraCoreError, Problem
from lora_core.events import BundleWritten, Emit, ignore
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.temporary import removed_afterwards


@attrs.frozen(kw_only=True)
class Change:
    """A change under way: `bundle` as it is, and `out`, an empty directory for files to add or replace."""

    bundle: Bundle
    out: Path
    emit: Emit = ignore

    def commit(self, manifest: Manifest) -> Bundle:
        """Make the files in `out` and `manifest` the bundle, and delete the files that only the old manifest lists.

        Raises `BundleError` if a file that is not the bundle's own stands in the way, `StorageError` if the disk is
        full or cannot be written; the bundle is then the old one.
        """
        root = self.bundle.path
        staging = self.out.parent
        changes = BundleDifference.of(self.bundle.manifest, manifest)
        removed = changes.removed
        with storage_errors("write the change of", root):
            for name, node in changes.records.files.items():
                (self.out / name).parent.mkdir(exist_ok=True)
                (self.out / name).write_bytes(node.data)
            _refuse_obstacles(root, self.out, changes.own, removed)
            (staging / MANIFEST).write_bytes(dumps(manifest))
            if removed:
                (staging / REMOVED).write_text(json.dumps(removed), encoding="utf-8")
            flush_tree(staging)
        left = Journal(files=tuple(_names(self.out)), removed=tuple(removed))
        try:
            with storage_errors("write the change of", root):
                staging.rename(root / STATE / JOURNAL)
            self._finish(left)
            self.emit(BundleWritten(path=root))
        except BaseException as error:
            if not os.path.lexists(staging / MANIFEST):  # it was committed
                self.emit(BundleWritten(path=root))
                if not isinstance(error, Exception):  # after an interruption nobody else may come for long
                    with suppress(OSError, LoraCoreError):
                        settle(root)
            raise
        return attrs.evolve(self.bundle, manifest=manifest)

    def _finish(self, left: Journal) -> None:
        root = self.bundle.path
        try:
            flush_directory(root / STATE)
            _finish(root, left)
        except OSError as error:
            raise storage_error("finish the change (the next command will) of", root, error) from error


@contextmanager
def change(path: Path, emit: Emit) -> Iterator[Change]:
    """Lock the bundle at `path` for a block that may call `commit` once; without it the bundle stays as it is."""
    restore(path)
    if not (path / MANIFEST).is_file() and not (path / STATE).is_dir():
        raise BundleError(f"There is no bundle at {str(path)!r}: it has no {MANIFEST}.", where=str(path))
    with storage_errors("change", path), locked(path, emit):
        settle(path)
        bundle = Bundle(path=path, manifest=read_manifest(path))
        out = path / STATE / STAGING / FILES
        with removed_afterwards(out.parent):
            out.mkdir(parents=True)
            yield Change(bundle=bundle, out=out, emit=emit)


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of the bundle at `root`; raises `BundleError` for what is none, `OSError` without one."""
    file = root / MANIFEST
    data = read_regular(file, limits.MANIFEST, BundleError, links=False)
    return loads(data, str(file), Whereabouts(root=root))


def settle(path: Path) -> None:
    """Finish a change that was committed and drop one that was not. The caller holds the lock.

    Raises `BundleError`, with nothing changed, for a change that no writer of ours left.
    """
    require_plain_state(path)
    state = path / STATE
    if (state / STAGING).exists():
        _discard(state / STAGING)
    if (state / JOURNAL).exists():
        _finish(path, read_journal(state / JOURNAL, path))


def _finish(path: Path, left: Journal) -> None:
    journal, state = path / STATE / JOURNAL, path / STATE
    # Records go last and after the rest is durable: as long as there is anything else to do, those of the bundle and of
    # the journal are whole, and say what may be done.
    for records in (False, True):
        touched = _move_files(journal / FILES, path, [each for each in left.files if is_records_file(each) == records])
        for name in left.removed:
            if is_records_file(name) == records:
                touched |= _delete(path, name)
        for directory in sorted(touched):
            if directory.exists():
                flush_directory(directory)
    # Last and after the rest is durable: a journal without a manifest has nothing left to delete.
    if (journal / MANIFEST).exists():
        (journal / MANIFEST).replace(path / MANIFEST)
        flush_directory(path)
    # In one step it is no journal any more, so a half-deleted one is never taken for a change.
    journal.rename(state / STAGING)
    _discard(state / STAGING)


def _discard(directory: Path) -> None:
    """Delete a tree into which processes of a killed writer may write for some milliseconds more."""
    for attempt in range(100):
        try:
            shutil.rmtree(directory)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or attempt == 99:
                raise
            time.sleep(0.01)
        else:
            return


def _names(files: Path) -> list[str]:
    return [found.relative_to(files).as_posix() for found in walk(files) if not found.is_dir()]


def _move_files(files: Path, root: Path, names: Sequence[str]) -> set[Path]:
    """Move `names`, which are still in `files`, to their places and return the directories that changed."""
    touched: set[Path] = set()
    for name in names:
        source, target = files / name, root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)
        touched |= {parent for parent in target.parents if parent.is_relative_to(root)}
    return touched


def _delete(root: Path, name: str) -> set[Path]:
    """Delete one file and the directories it leaves empty; return the directories that changed."""
    target = root / name
    target.unlink(missing_ok=True)
    for parent in target.parents:
        if parent == root:
            break
        try:
            parent.rmdir()
        except OSError:  # not empty, or gone already
            break
    return {parent for parent in target.parents if parent.is_relative_to(root)}


def _refuse_obstacles(root: Path, files: Path, own: Set[str], removed: Sequence[str]) -> None:
    """Refuse, before the commit, whatever would stop the moves after it, or be lost by them."""
    places = Places(root)
    problems = [linked for name in removed if (linked := places.linked(name)) is not None]
    for source in walk(files):
        name = source.relative_to(files).as_posix()
        target = root / name
        if (linked := places.linked(name)) is not None:
            problems.append(linked)
            continue
        if source.is_dir():
            wrong = os.path.lexists(target) and (target.is_symlink() or not target.is_dir())
        else:
            wrong = os.path.lexists(target) and (name not in own or target.is_symlink() or target.is_dir())
        if wrong:
            problems.append(Problem(what=f"{name!r} is in the way, which the bundle does not list", where=str(target)))
    if problems:
        raise BundleError(problems)
