"""How the process ends when it is interrupted, asked to end, or started without streams."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

from lora_core.cli import ending, failure
from lora_core.cli.console import Console, Verbosity
from lora_core.errors import ExitCode
from lora_core.events import BundleWritten
from tests.cli.acting import install_acting
from tests.cli.shell import Shell

# `lora-core --help` that sends itself a signal while it imports.
STRUCK = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), signal.{signal})
sys.meta_path.insert(0, Strike())
sys.argv = ["lora-core", "--help"]
from lora_core.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_while_python_imports_leaves_no_traceback(name: str, code: int) -> None:
    script = STRUCK.format(signal=name)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "interrupted; nothing was changed\n")


# `lora-core` that sends itself a signal when all is said: before or after handlers written in Python are gone.
STRUCK_LATE = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Strike:
    def __del__(self, kill=os.kill, number=signal.{signal}, pid=os.getpid()):
        kill(pid, number)
if {late}:
    sys.modules["strike"] = Strike()
else:
    atexit.register(Strike().__del__)
sys.argv = ["lora-core", *{words}]
from lora_core.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("words", "code", "late"), [(["--help"], 0, True), (["inspect", "nowhere"], 3, False)])
def test_a_signal_when_all_is_done_changes_no_exit_code(name: str, words: list[str], code: int, late: bool) -> None:
    script = STRUCK_LATE.format(signal=name, words=words, late=late)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended
    assert "Traceback" not in ended.stderr
    assert bool(ended.stdout) == (code == 0)


def test_being_asked_to_end_leaves_nothing_behind(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = attrs.evolve(shell, sites=(*shell.sites, install_acting(tmp_path / "acting")))
    monkeypatch.setenv("ACT", "announce")
    before = stage.files()
    words = ("export", "--backend", "acting", "--model", "model", "-o", "out")
    with subprocess.Popen(
        stage.command(*words), cwd=stage.directory, env=stage.environment, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready to be interrupted" in line:
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
    assert process.returncode == 143
    assert "terminated; nothing was changed" in rest
    assert stage.files() == before
    assert stage.logs() == []


def test_an_interruption_says_whether_the_bundle_was_written(capfd: pytest.CaptureFixture[str]) -> None:
    with Console(Verbosity()) as console:
        assert failure.report(KeyboardInterrupt(), console) is ExitCode.INTERRUPTED
        console.emit(BundleWritten(path=Path("b")))
        failure.report(KeyboardInterrupt(), console)
    first, second = capfd.readouterr().err.splitlines()
    assert first == "interrupted; nothing was changed"
    assert "nothing was changed" not in second


# `lora-core add` that is struck when its log is opened, or when its work is done and the log goes.
STRUCK_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from lora_core.cli.noise import Noise
whole = Noise.{point}
def struck(self, *words):
    done = whole(self, *words)
    os.kill(os.getpid(), signal.{signal})
    return done
Noise.{point} = struck
sys.argv = ["lora-core", "add", "bundle", "--adapter", "bob=adapters/bob"]
from lora_core.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize(("point", "done"), [("_open_log", False), ("discard", True), ("__exit__", True)])
def test_a_signal_at_the_edges_of_a_command_leaves_no_log_and_is_told_truly(
    shell: Shell, name: str, code: int, point: str, done: bool
) -> None:
    script = STRUCK_AT.format(signal=name, point=point)
    words = [sys.executable, "-c", script]
    ended = subprocess.run(
        words, cwd=shell.directory, env=shell.environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == (0 if done else code), ended
    assert ("nothing was changed" in ended.stderr) != done
    assert shell.logs() == []


def closing(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


@pytest.mark.parametrize("closed", [(0, 1, 2), (1,), (2,), (0,)], ids=str)
def test_closed_streams_change_no_exit_code(shell: Shell, closed: tuple[int, ...]) -> None:
    def run(*words: str) -> int:
        return subprocess.run(
            shell.command(*words),
            cwd=shell.directory,
            env=shell.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=closing(*closed),
            check=False,
        ).returncode

    assert run("inspect", "bundle") == 0
    assert run("inspect", "model") == 3


def test_full_stderr_changes_no_exit_code(shell: Shell) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        words = shell.command("inspect", "bundle", "--quiet")
        ended = subprocess.run(
            words, cwd=shell.directory, env=shell.environment, stdout=subprocess.PIPE, stderr=full, check=False
        )
    assert ended.returncode == 0


# `lora-core inspect bundle` that is struck while a library written in C is imported, which makes another error of it.
SWALLOWED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Strike:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            try:
                os.kill(os.getpid(), signal.{signal})
            except KeyboardInterrupt:
                pass
            raise ImportError("numpy._core.multiarray failed to import")
sys.meta_path.insert(0, Strike())
sys.argv = ["lora-core", "add", "bundle", "--adapter", "bob=adapters/bob"]
from lora_core.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_is_one_whatever_a_library_makes_of_it(shell: Shell, name: str, code: int) -> None:
    words = [sys.executable, "-c", SWALLOWED.format(signal=name)]
    ended = subprocess.run(
        words, cwd=shell.directory, env=shell.environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == code, ended
    assert "nothing was changed" in ended.stderr
    assert "defect" not in ended.stderr


@pytest.mark.parametrize("megabytes", [60, 75, 90, 110, 140, 160])
def test_too_little_address_space_is_told(shell: Shell, megabytes: int) -> None:
    limit = megabytes << 20
    outcome = shell.run("inspect", "bundle", prepare=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert outcome.code == 4, outcome
    assert "not enough memory" in outcome.err
    assert shell.logs() == []


def test_little_address_space_leaves_numpy_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    for limit, threads in ((1 << 30, "1"), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        ending.require_memory()
        assert os.environ.pop("OPENBLAS_NUM_THREADS", None) == threads


# `lora-core` that tells at its end how many threads numpy was to have.
TELLING = """
import atexit, os, sys
atexit.register(lambda: print(os.environ.get("OPENBLAS_NUM_THREADS")))
sys.argv = ["lora-core", "{command}", "nowhere"]
from lora_core.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("command", "set_before", "threads"),
    [("inspect", {}, "1"), ("verify", {}, "None"), ("inspect", {"OPENBLAS_NUM_THREADS": "2"}, "2")],
)
def test_a_command_that_multiplies_nothing_starts_no_threads(
    command: str, set_before: dict[str, str], threads: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"} | set_before
    script = TELLING.format(command=command)
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout == f"{threads}\n"
