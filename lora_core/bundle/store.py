"""Opening a bundle for reading, and checking that its files are those of the manifest."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_core.bundle.bundle import Artifact, Bundle
from lora_core.bundle.durable import storage_error, storage_errors
from lora_core.bundle.exchange import restore
from lora_core.bundle.hashing import file_sha256
from lora_core.bundle.lock import locked, locked_if_free
from lora_core.bundle.manifest import Whereabouts, loads
from lora_core.bundle.paths import JOURNAL, MANIFEST, STATE
from lora_core.bundle.places import Places, require_plain_state
from lora_core.bundle.records import Records
from lora_core.bundle.transaction import settle
from lora_core.errors import BundleError, Problem, StorageError
from lora_core.events import Emit, ignore
from lora_core.intake import limits
from lora_core.intake.files import read_regular

_CANNOT_WRITE = {errno.EROFS, errno.EACCES, errno.EPERM}
_READ_ONLY_PATIENCE = 10.0
_REMEDY = "Export the bundle again, or restore the file."


def open_bundle(path: Path | str, emit: Emit = ignore) -> Bundle:
    """Open the bundle at `path`: finish a change that was killed, read the manifest, check the size of every file.

    Files of adapters whose records are beside the manifest are checked when one is asked for (`Bundle.record`), so that
    a bundle of thousands opens as quickly as one of a few. Works on a read-only file system too. Raises `BundleError`
    if there is no bundle, it is damaged, or its schema is newer; `StorageError` if it cannot be read.
    """
    root = Path(path)
    with storage_errors("open", root):
        restore(root)
        while True:
            _tidy(root, emit)
            before, data = moment(root), _read_manifest(root)
            whereabouts = Whereabouts(root=root, reopen=_records_now)
            bundle = Bundle(path=root, manifest=loads(data, str(root / MANIFEST), whereabouts))
            problems = list(base_problems(bundle))
            if not problems:
                return bundle
            # A process that changed the bundle meanwhile explains the differences; then look again.
            if before is not None and moment(root) == before:
                raise BundleError(problems)


def moment(root: Path) -> tuple[int, int, int] | None:
    """Return what tells the bundle at `root` as it is from what it was or will be, None while a change is under way.

    The manifest's bytes do not tell: a bundle that lost an adapter and got it back has those of before.
    """
    try:
        if (root / STATE / JOURNAL).exists():
            return None
        status = (root / MANIFEST).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def verify_hashes(bundle: Bundle) -> list[Problem]:
    """Read every file and return what differs from the manifest (nothing if the bundle is whole)."""
    problems = list(size_problems(bundle))
    wrong = {problem.where for problem in problems}
    intact = [artifact for artifact in bundle.manifest.artifacts if str(bundle.file(artifact)) not in wrong]
    return problems + [problem for artifact in intact for problem in hash_problems(bundle, artifact)]


def hash_problems(bundle: Bundle, artifact: Artifact) -> Iterator[Problem]:
    """Read the file of one artifact and yield a problem if its bytes are not those of the manifest."""
    file = bundle.file(artifact)
    with storage_errors("read", file):
        found = file_sha256(file)
    if found != artifact.sha256:
        what = f"{artifact.path!r} has SHA-256 {found}, the manifest says {artifact.sha256}"
        yield Problem(what=what, where=str(file), remedy=_REMEDY)


def _read_manifest(root: Path) -> bytes:
    try:
        return read_regular(root / MANIFEST, limits.MANIFEST, BundleError, links=False)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"There is no bundle at {str(root)!r}: it has no {MANIFEST}.",
            where=str(root),
            remedy="Give the directory that `lora-core export` wrote.",
        ) from None


def size_problems(bundle: Bundle) -> Iterator[Problem]:
    """Yield a problem for every file that is missing, no regular file of the bundle itself, or of another size."""
    yield from _problems(bundle, bundle.manifest.artifacts)


def base_problems(bundle: Bundle) -> Iterator[Problem]:
    """Yield such problems of the base's files, and of those of adapters whose records are in the manifest itself."""
    manifest = bundle.manifest
    adapters = [artifact for record in manifest.records.in_memory for artifact in record.artifacts]
    yield from _problems(bundle, sorted((*manifest.base_artifacts, *adapters), key=lambda each: each.path))


def _problems(bundle: Bundle, artifacts: Iterable[Artifact]) -> Iterator[Problem]:
    places = Places(bundle.path)
    for artifact in artifacts:
        if (problem := places.problem(artifact)) is not None:
            yield problem


def _records_now(root: Path) -> Records:
    """Return the records of the bundle at `root`; whoever is changing it is waited for."""
    return open_bundle(root).manifest.records


def _tidy(root: Path, emit: Emit) -> None:
    """Finish or drop what a killed process left; wait for a living one only if it is past its commit."""
    require_plain_state(root)
    if not (root / STATE).exists():
        return
    try:
        with locked_if_free(root) as free:
            if free:
                settle(root)
        if not free and (root / STATE / JOURNAL).exists():
            with locked(root, emit):
                settle(root)
    except FileNotFoundError:
        return  # the whole bundle was replaced in this moment
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        _wait_for_others(root, error)


def _wait_for_others(root: Path, error: OSError) -> None:
    """Without permission to write we can only hope that whoever committed the change is alive and finishes it."""
    deadline = time.monotonic() + _READ_ONLY_PATIENCE
    while (root / STATE / JOURNAL).exists():
        if time.monotonic() > deadline:
            unfinished = storage_error("finish an interrupted change of", root, error)
            raise StorageError(
                unfinished.problems[0].what,
                where=str(root),
                remedy="Open the bundle once where it can be written, for instance with `lora-core inspect`.",
            ) from error
        time.sleep(0.02)
