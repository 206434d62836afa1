"""Commands do what they do whatever the machine around them is like."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import attrs
import pytest

from tests.cli.shell import Shell

EXPORT = ("export", "--backend", "plain", "--model", "model", "--adapter", "alice=adapters/alice", "-o", "out")
ADD = ("add", "out", "--adapter", "bob=adapters/bob")
ODD = "a b\n'ü\" %s {0} $HOME -x"
# Every clock of Python says 1970.
CLOCK = "import time\ntime.time = lambda: 0.0\ntime.time_ns = lambda: 0\n"


@attrs.frozen
class Elsewhere(Shell):
    """A shell whose processes have other variables in their environment; those that are None they do not have."""

    changed: Mapping[str, str | None] = attrs.field(factory=dict, kw_only=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the commands."""
        found = {**super().environment, **self.changed}
        return {name: value for name, value in found.items() if value is not None}


def in_c_locale(shell: Shell) -> Shell:
    changed = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    return Elsewhere(directory=shell.directory, sites=shell.sites, changed=changed)


def without_a_home(shell: Shell) -> Shell:
    changed = {"HOME": None, "XDG_CACHE_HOME": None, "XDG_CONFIG_HOME": None, "HF_HOME": None}
    return Elsewhere(directory=shell.directory, sites=shell.sites, changed=changed)


def in_1970(shell: Shell) -> Shell:
    site = shell.directory.parent / "clock"
    site.mkdir()
    (site / "sitecustomize.py").write_text(CLOCK)
    for path in shell.directory.rglob("*"):
        os.utime(path, (0, 0))
    return attrs.evolve(shell, sites=(site, *shell.sites))


def in_an_odd_directory(shell: Shell) -> Shell:
    moved = shell.directory.parent / ODD / "work"
    shutil.copytree(shell.directory, moved)
    return attrs.evolve(shell, directory=moved)


def files_of(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "surroundings", [(in_1970, without_a_home), (in_an_odd_directory, in_c_locale)], ids=["1970", "odd"]
)
def test_surroundings_change_no_byte(
    shell: Shell, inputs: Path, surroundings: Sequence[Callable[[Shell], Shell]]
) -> None:
    changed = shell
    for surround in surroundings:
        changed = surround(changed)
    for words in (EXPORT, ADD):
        outcome = changed.run(*words)
        assert outcome.code == 0, outcome
        if words is EXPORT:
            assert files_of(changed.directory / "out") == files_of(inputs / "bundle")


def test_files_and_directories_have_the_permissions_that_the_user_asks_for(shell: Shell) -> None:
    for words in (EXPORT, ADD):
        assert shell.run(*words, prepare=lambda: os.umask(0o077) and None).code == 0
    out = shell.directory / "out"
    assert [path.name for path in (out, *out.rglob("*")) if path.stat().st_mode & 0o077] == []
