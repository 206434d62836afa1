"""Creating a bundle: it appears whole under its name, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import attrs

from lora_core.bundle.bundle import Bundle, Manifest
from lora_core.bundle.durable import flush_directory, flush_tree, storage_errors
from lora_core.bundle.exchange import exchange, restore
from lora_core.bundle.lock import locked, locked_if_free
from lora_core.bundle.manifest import dumps, is_manifest
from lora_core.bundle.paths import MANIFEST, STATE
from lora_core.bundle.records import Records, difference
from lora_core.errors import BundleError
from lora_core.events import BundleWritten, Emit
from lora_core.intake import limits
from lora_core.intake.files import read_regular
from lora_core.temporary import removed_afterwards

_CONTENT = "bundle"
_RANDOM = 4


@attrs.frozen(kw_only=True)
class Creation:
    """A bundle in the making: `out` is the empty directory for its files."""

    out: Path
    target: Path
    force: bool
    emit: Emit

    def commit(self, manifest: Manifest) -> Bundle:
        """Write `manifest` beside the files and give the directory its name. Raises `BundleError`, `StorageError`."""
        with storage_errors("write", self.target):
            data = dumps(manifest)
            (self.out / MANIFEST).write_bytes(data)
            for name, node in difference(Records.of(()), manifest.records).files.items():
                (self.out / name).parent.mkdir(exist_ok=True)
                (self.out / name).write_bytes(node.data)
            flush_tree(self.out)
            _raise(refusal(self.target, force=self.force))
            try:
                if _is_empty(self.target):
                    self.out.rename(self.target)
                else:
                    self._replace()
                flush_directory(self.target.parent)
                self.emit(BundleWritten(path=self.target))
            except BaseException:  # also after an interruption between any two of these steps
                if self._is_written(data):
                    self.emit(BundleWritten(path=self.target))
                raise
        return Bundle(path=self.target, manifest=manifest)

    def _is_written(self, manifest: bytes) -> bool:
        try:
            return (self.target / MANIFEST).read_bytes() == manifest
        except OSError:
            return False

    def _replace(self) -> None:
        with locked(self.target, self.emit) as old:  # an adapter that is being added is added first, then replaced
            exchange(self.out, self.target)
            old.directory = self.out
            shutil.rmtree(self.out)


@contextmanager
def creation(target: Path, emit: Emit, *, force: bool = False) -> Iterator[Creation]:
    """Hand out a directory beside `target` for a block that may call `commit` once; without it nothing remains.

    What killed runs for the same target left behind is removed first. Raises `BundleError` if `target` exists and
    is not a bundle, or is one and `force` is False.
    """
    target = target.resolve()
    with storage_errors("create", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        restore(target)
        _remove_leftovers(target)
        _raise(refusal(target, force=force))
        with _work_directory(target, emit) as work:
            out = work / _CONTENT
            out.mkdir()
            yield Creation(out=out, target=target, force=force, emit=emit)


def _prefix(target: Path) -> str:
    return f".{target.name}.tmp-"


@contextmanager
def _work_directory(target: Path, emit: Emit) -> Iterator[Path]:
    """Make a directory beside `target`, locked as long as it is in use, and remove it at the end."""
    with ExitStack() as stack:
        while True:
            work = target.parent / f"{_prefix(target)}{os.urandom(_RANDOM).hex()}"
            stack.enter_context(removed_afterwards(work))  # first: an interruption may follow the next line
            work.mkdir()
            with suppress(FileNotFoundError):  # another run took it for a leftover in the moment before it was locked
                stack.enter_context(locked(work, emit))
                break
        yield work


def _remove_leftovers(target: Path) -> None:
    with os.scandir(target.parent) as entries:
        leftovers = [Path(entry) for entry in entries if entry.name.startswith(_prefix(target))]
    for leftover in leftovers:
        try:
            if not _is_ours(leftover, target):
                continue
            with locked_if_free(leftover) as dead:
                if dead:
                    shutil.rmtree(leftover)
        except FileNotFoundError:
            continue  # its owner has just finished


def _is_ours(leftover: Path, target: Path) -> bool:
    """Say whether `leftover` is named and filled as `_work_directory` does; a user's own may begin like that too."""
    tail = leftover.name.removeprefix(_prefix(target))
    if len(tail) != 2 * _RANDOM or set(tail) - set("0123456789abcdef") or leftover.is_symlink():
        return False
    return leftover.is_dir() and {each.name for each in leftover.iterdir()} <= {_CONTENT, STATE}


def refusal(target: Path, *, force: bool) -> BundleError | None:
    """Return why no bundle may be written to `target`, whether for what is there or for want of `force`."""
    if not os.path.lexists(target) or _is_empty(target):
        return None
    if not _is_bundle(target):
        return BundleError(
            f"{str(target)!r} exists and is not a bundle.",
            where=str(target),
            remedy="lora-core never deletes what it did not write: choose another directory, or remove it yourself.",
        )
    if not force:
        return BundleError(
            f"There is already a bundle at {str(target)!r}.",
            where=str(target),
            remedy="Add adapters to it with `lora-core add`, replace it with --force, or choose another directory.",
        )
    return None


def _raise(error: BundleError | None) -> None:
    if error is not None:
        raise error


def _is_empty(target: Path) -> bool:
    return not os.path.lexists(target) or (target.is_dir() and next(target.iterdir(), None) is None)


def _is_bundle(target: Path) -> bool:
    manifest = target / MANIFEST
    try:
        return is_manifest(read_regular(manifest, limits.MANIFEST, BundleError, links=False))
    except (BundleError, FileNotFoundError, NotADirectoryError):
        return False
