"""Where a bundle's files lie: in the bundle itself, whatever links a stranger put there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lora_core.bundle.entries import Artifact
from lora_core.bundle.paths import JOURNAL, LOCK, STAGING, STATE
from lora_core.errors import BundleError, Problem
from lora_core.intake.files import irregular

_REMEDY = "A bundle is files and directories only: copy it with its links followed (`cp -rL`)."
_RESTORE = "Export the bundle again, or restore the file."
_PARTS = {LOCK: stat.S_ISREG, STAGING: stat.S_ISDIR, JOURNAL: stat.S_ISDIR}


class Places:
    """Looks at places below `root`, at each directory once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._plain: set[str] = {""}

    def linked(self, path: str) -> Problem | None:
        """Return a problem if a directory above `path` (relative) is a link or no directory; missing ones are fine."""
        above = path.rpartition("/")[0]
        if above in self._plain:
            return None
        if (problem := self.linked(above)) is not None:
            return problem
        try:
            status = os.lstat(self._root / above)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISDIR(status.st_mode):
            kind = irregular(status) or "a file"
            return Problem(what=f"{above!r} is {kind}, not a directory", where=str(self._root / above), remedy=_REMEDY)
        self._plain.add(above)
        return None

    def problem(self, artifact: Artifact) -> Problem | None:
        """Return what is wrong with the file of an artifact as far as its size tells, None if nothing is."""
        found, where = self.size(artifact.path), str(self._root / artifact.path)
        if isinstance(found, Problem):
            return found
        if found is None:
            return Problem(what=f"{artifact.path!r} is missing", where=where, remedy=_RESTORE)
        if found == artifact.size:
            return None
        what = f"{artifact.path!r} has {found} bytes, the manifest says {artifact.size}"
        return Problem(what=what, where=where, remedy=_RESTORE)

    def size(self, path: str) -> int | Problem | None:
        """Return the size of the regular file at `path` (relative), what is wrong with it, or None if it is missing."""
        if (problem := self.linked(path)) is not None:
            return problem
        try:
            status = os.lstat(self._root / path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if (kind := irregular(status)) is not None:
            return Problem(what=f"{path!r} is {kind}, not a file", where=str(self._root / path), remedy=_REMEDY)
        return status.st_size


def require_plain_state(root: Path) -> None:
    """Raise `BundleError` if lora-core's own directory below `root`, or what stands in it, is a link or a device."""
    state = root / STATE
    try:
        status = os.lstat(state)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISDIR(status.st_mode):
        raise BundleError(f"{STATE!r} is no directory.", where=str(state), remedy=_foreign(state))
    for name, right in _PARTS.items():
        try:
            found = os.lstat(state / name)
        except FileNotFoundError:
            continue
        if not right(found.st_mode):
            what = f"{name!r} is not what lora-core puts there."
            raise BundleError(what, where=str(state / name), remedy=_foreign(state))


def _foreign(state: Path) -> str:
    return f"lora-core did not write it, and nothing was touched. Delete {str(state)!r}, then use the bundle."


def foreign_journal(journal: Path, why: str) -> BundleError:
    """Return the error for a journal that no change of ours left."""
    return BundleError(
        f"The bundle has an unfinished change that lora-core did not write: {why}.",
        where=str(journal),
        remedy=_foreign(journal.parent),
    )
