"""What a whole process costs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attrs


@attrs.frozen(kw_only=True)
class Cost:
    """Wall and CPU seconds of a process, and its peak resident memory in bytes.

    On a busy machine CPU seconds are what can be compared.
    """

    seconds: float
    cpu_seconds: float
    peak_memory: int


def run(*command: str | Path, log: Path | None = None, cwd: Path | None = None) -> Cost:
    """Run a command, its output kept in `log`; raises `RuntimeError` with the end of the output if it fails.

    The caller must be small: a child's peak memory counts that of the process that it was forked from.
    """
    with log.open("w+b") if log else tempfile.TemporaryFile() as sink:
        start = time.monotonic()
        process = subprocess.Popen([str(word) for word in command], stdout=sink, stderr=subprocess.STDOUT, cwd=cwd)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sink.seek(0)
            output = sink.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(map(str, command))} failed with {process.returncode}:\n{output[-4000:]}")
    return Cost(seconds=seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_memory=usage.ru_maxrss * 1024)


def run_lora_core(*words: str | Path) -> Cost:
    """Run `lora-core` as a whole process."""
    return run(Path(sys.executable).with_name("lora-core"), *words)
