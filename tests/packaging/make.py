"""Running `make` of this repository as a shell would, though the tests may run under another `make`."""

from __future__ import annotations

import os
import subprocess

from tests.packaging.distributions import ROOT

# What a `make` hands to those that it calls; they then say which folder they enter, or take over its options.
OUTER = ("MAKELEVEL", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "GNUMAKEFLAGS")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `make` with `arguments` in the root of the repository."""
    environment = {name: value for name, value in os.environ.items() if name not in OUTER}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
