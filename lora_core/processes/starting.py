"""Processes of our own that run Python."""

from __future__ import annotations

import os
import subprocess
import sys


def python_process(module: str) -> subprocess.Popen[bytes]:
    """Start Python on a module of ours, which it finds where this process does, with pipes to and from it."""
    # -P: without it Python puts the working directory first, and a folder of adapters may hold an attrs.py.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-P", "-m", module]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
