"""A new environment that holds one distribution, from its wheel, and what it declares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import attrs

from tests.packaging.distributions import CORE, Distribution


@attrs.frozen(kw_only=True)
class Environment:
    """A virtual environment in `directory`, with the commands of what is installed there."""

    directory: Path

    def script(self, source: str, *words: str | Path) -> str:
        """Run Python `source`, which must end well, and return what it printed."""
        return _printed(self._call(self.directory / "bin/python", "-c", source, *words))

    def lora_core(self, *words: str | Path) -> str:
        """Run `lora-core` with `words`, which must end well, and return what it printed."""
        return _printed(self.call_lora_core(*words))

    def call_lora_core(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `lora-core` with `words`, however it ends."""
        return self._call(self.directory / "bin/lora-core", *words)

    def _call(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        # No module of ours may be within reach but those installed here.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True, check=False)


def _printed(ran: subprocess.CompletedProcess[str]) -> str:
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def make_environment(directory: Path, python: str, distribution: Distribution, built: Path) -> Environment:
    """Install `distribution` from the archives in `built`, and from the package index what it declares beside them."""
    wheels = [each.wheel(built) for each in dict.fromkeys((CORE, distribution))]
    pip = [sys.executable, "-m", "pip", "--python", directory / "bin/python", "install", "--quiet", "--no-compile"]
    for command in ([python, "-m", "venv", "--without-pip", directory], [*pip, *wheels]):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode != 0:
            raise RuntimeError(f"{ran.stdout}{ran.stderr}")
    return Environment(directory=directory)
