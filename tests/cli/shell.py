"""`lora-core` as a user runs it: a process, its output and what it leaves on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest

from lora_core.cli.main import main


@attrs.frozen(kw_only=True)
class Outcome:
    """How a command ended. `left` are the files and directories that it added below the working directory."""

    code: int
    out: str
    err: str
    left: tuple[str, ...]

    def expect_refusal(self, code: int, *fragments: str) -> None:
        """Check a clear refusal: the code, what it says, no traceback, no result, nothing left behind."""
        assert self.code == code, self
        for fragment in fragments:
            assert fragment in self.err, f"{fragment!r} is not in:\n{self.err}"
        assert "error: " in self.err
        assert "Traceback" not in self.err
        assert self.out == ""
        assert self.left == ()


@attrs.frozen(kw_only=True)
class Shell:
    """Runs `lora-core` in `directory`, with the distributions of `sites` installed besides the environment's own."""

    directory: Path
    sites: tuple[Path, ...] = ()

    def command(self, *words: str | Path) -> list[str]:
        """Return the command line of `lora-core` with `words`."""
        return [sys.executable, "-m", "lora_core.cli.main", *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the commands: temporary files and caches lie beside the working directory."""
        private = self.directory.parent
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*map(str, self.sites), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "TMPDIR": str(_made(private / "tmp")),
            "XDG_CACHE_HOME": str(private / "cache"),
            "HF_HOME": str(private / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "120",
        }

    def run(self, *words: str | Path, prepare: Callable[[], None] | None = None) -> Outcome:
        """Run a command to its end; `prepare` runs in the child before it."""
        before = self.files()
        ended = subprocess.run(
            self.command(*words),
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            preexec_fn=prepare,
            check=False,
        )
        left = tuple(sorted(self.files() - before))
        return Outcome(code=ended.returncode, out=ended.stdout, err=ended.stderr, left=left)

    def run_here(self, words: Sequence[str], capture: pytest.CaptureFixture[str]) -> Outcome:
        """Run a command in this process, as `run` does in one of its own: for what fails before anything heavy."""
        before = self.files()
        capture.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.directory)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            for site in self.sites:
                patch.syspath_prepend(site)
            code = main(words)
        written = capture.readouterr()
        left = tuple(sorted(self.files() - before))
        return Outcome(code=code, out=written.out, err=written.err, left=left)

    def files(self) -> set[str]:
        """Return everything below the working directory."""
        return {path.relative_to(self.directory).as_posix() for path in self.directory.rglob("*")}

    def logs(self) -> list[Path]:
        """Return the logs that were kept in the temporary directory."""
        return sorted((self.directory.parent / "tmp").glob("lora-core-*.log"))


def _made(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    return directory
