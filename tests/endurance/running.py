"""Commands run in a process of their own, whole or forked from one that has imported what they need, and signalled."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import attrs

from lora_core.cli.main import main
from tests.cli.shell import Shell

MODULES = "MODULES"
"""The variable of the environment that names a file for the modules that a command has imported in the end."""
_STARTS_THREADS = ("onnxruntime",)
"""Libraries that start threads when they are imported, which no fork has: they are imported in the fork."""


@attrs.frozen(kw_only=True)
class Blow:
    """A signal, and how many seconds after the command's start it is sent."""

    number: signal.Signals
    delay: float


@attrs.frozen(kw_only=True)
class Ended:
    """How a command ended: `code` is below zero if a signal ended it."""

    code: int
    out: str
    err: str


def whole(shell: Shell, words: Sequence[str], blow: Blow | None = None) -> Ended:
    """Run a command from the interpreter's start to its end."""
    with subprocess.Popen(
        shell.command(*words),
        cwd=shell.directory,
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What the parent ignores would stay ignored: a shell that starts this in the background has SIGINT so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    ) as process:
        if blow is not None:
            time.sleep(blow.delay)
            process.send_signal(blow.number)
        out, err = process.communicate()
    return Ended(code=process.returncode, out=out, err=err)


def forked(shell: Shell, words: Sequence[str], blow: Blow | None = None) -> Ended:
    """Run a command in a fork of this process: of what it does nothing is importing, if `import_what_it_needs` ran."""
    out, err = (shell.directory.parent / name for name in ("out", "err"))
    environment = shell.environment
    child = os.fork()
    if child == 0:
        _become(shell, words, environment, (out, err))
    if blow is not None:
        time.sleep(blow.delay)
        os.kill(child, blow.number)
    _, status = os.waitpid(child, 0)
    told = [path.read_text("utf-8", "replace") if path.exists() else "" for path in (out, err)]
    return Ended(code=os.waitstatus_to_exitcode(status), out=told[0], err=told[1])


def import_what_it_needs(shell: Shell, words: Sequence[str]) -> None:
    """Run a command in a fork and import here what it has imported there; this process starts no thread."""
    sys.path[:0] = [str(site) for site in shell.sites if str(site) not in sys.path]
    names = shell.directory.parent / "modules"
    os.environ[MODULES] = str(names)
    try:
        done = forked(shell, words)
    finally:
        del os.environ[MODULES]
    if done.code != 0:
        raise SystemExit(f"{' '.join(words)} failed: {done.err}")
    for name in json.loads(names.read_text()):
        if name.partition(".")[0] in _STARTS_THREADS:
            continue
        with suppress(Exception):  # what is made while a library works cannot be imported by its name
            importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise SystemExit(f"An import of {' '.join(words)} starts threads, which no fork has: {threads}")


def _become(shell: Shell, words: Sequence[str], environment: dict[str, str], told: Sequence[Path]) -> NoReturn:
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in enumerate(told, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
        os.chdir(shell.directory)
        os.environ.update(environment)
        tempfile.tempdir, sys.argv = None, ["lora-core", *words]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
        if MODULES in environment:
            Path(environment[MODULES]).write_text(json.dumps(list(sys.modules)))
    except KeyboardInterrupt:  # `main` had not begun: a process would end so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - a defect, which is told
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
