"""What the process does: noise, progress, logs, interruptions, full disks, broken plugins."""

from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from tests.cli.acting import install_acting
from tests.cli.shell import Shell

EXPORT = ("export", "--backend", "acting", "--model", "model", "-o", "out")
NOISE = ("noise of C on stdout", "noise of C on stderr", "noise of Python", "noise of warnings", "noise of logging")
LIMIT = 1_000_000


@pytest.fixture
def stage(shell: Shell, tmp_path: Path) -> Shell:
    """A shell with the backend `acting` installed, told by ACT what to do."""
    return attrs.evolve(shell, sites=(*shell.sites, install_acting(tmp_path / "acting")))


def test_noise_is_kept_out_and_the_log_goes_away_on_success(stage: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT", "noise")
    outcome = stage.run(*EXPORT)
    assert outcome.code == 0, outcome
    assert "noise" not in outcome.out + outcome.err
    assert outcome.out.startswith("out: acting, policy fp32")
    assert stage.logs() == []


def test_verbose_shows_the_noise_on_stderr_only(stage: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT", "noise")
    outcome = stage.run(*EXPORT, "--verbose")
    assert [each for each in NOISE if each not in outcome.err] == []
    assert "noise" not in outcome.out


def test_log_file_keeps_the_noise_and_stays(stage: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT", "noise")
    assert stage.run(*EXPORT, "--log-file", "my.log").code == 0
    log = (stage.directory / "my.log").read_text("utf-8")
    assert [each for each in NOISE if each not in log] == []


def test_verbose_with_a_log_file_does_both(stage: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT", "noise")
    outcome = stage.run(*EXPORT, "--verbose", "--log-file", "my.log")
    log = (stage.directory / "my.log").read_text("utf-8")
    assert [each for each in NOISE if each not in outcome.err or each not in log] == []


def test_failing_plugin_is_named_and_the_log_with_its_trace_is_kept(
    stage: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACT", "noise raise")
    outcome = stage.run(*EXPORT)
    outcome.expect_refusal(6, "lora-core-acting 1.0", 'KeyError: "the plugin\'s own"')
    [log] = stage.logs()
    assert str(log) in outcome.err
    assert "Traceback" in log.read_text("utf-8")
    assert NOISE[0] in log.read_text("utf-8")


def test_full_disk_leaves_nothing_behind(stage: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT", "big")

    def limit() -> None:
        # A write beyond the limit fails with EFBIG, as one on a full disk does with ENOSPC.
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    stage.run(*EXPORT, prepare=limit).expect_refusal(7, "File too large")


def test_too_little_memory_is_the_machines_fault(stage: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT", "memory")
    stage.run(*EXPORT).expect_refusal(4, "not enough memory")


def test_interrupted_export_leaves_nothing_behind(stage: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT", "announce")
    before = stage.files()
    with subprocess.Popen(
        stage.command(*EXPORT),
        cwd=stage.directory,
        env=stage.environment,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background has them ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "ready to be interrupted" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    assert stage.files() == before
    assert stage.logs() == []


def test_progress_goes_to_stderr_with_elapsed_time_and_quiet_leaves_warnings(stage: Shell) -> None:
    loud, quiet = stage.run(*EXPORT), stage.run(*EXPORT, "--force", "--quiet")
    assert re.search(r"^\[ +\d+\.\d s\] act: done in \d+\.\d\d s$", loud.err, re.MULTILINE)
    assert "warning: mind the gap" in loud.err
    assert quiet.err == "warning: mind the gap\n"
    assert loud.out == quiet.out


def test_output_on_a_terminal_is_complete(stage: Shell) -> None:
    controller, terminal = pty.openpty()
    environment = {**stage.environment, "TERM": "xterm"}
    process = subprocess.Popen(
        stage.command(*EXPORT), cwd=stage.directory, env=environment, stderr=terminal, stdout=subprocess.PIPE, text=True
    )
    os.close(terminal)
    shown = b""
    while chunk := _read(controller):
        shown += chunk
    os.close(controller)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert re.search(rb"act: \d+\.\d\d s", shown)
    assert b"warning: mind the gap" in shown
    assert out.startswith("out: acting")


def test_reader_that_leaves_early_is_no_error(shell: Shell) -> None:
    reading = subprocess.Popen(
        shell.command("inspect", "bundle", "--json"),
        cwd=shell.directory,
        env=shell.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reading.stdout is not None
    assert reading.stderr is not None
    reading.stdout.close()
    errors = reading.stderr.read()
    reading.stderr.close()
    assert reading.wait() == 0
    assert "error" not in errors
    assert "BrokenPipe" not in errors


def test_listing_imports_nothing_heavy(shell: Shell) -> None:
    program = (
        "import sys\n"
        "from lora_core.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "heavy = {'torch', 'numpy', 'executorch', 'coremltools', 'transformers', 'torchao', 'peft', 'rich', 'jinja2'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    for words in (["--help"], ["backends"], ["export", "--help"], ["--version"]):
        done = subprocess.run(
            [sys.executable, "-c", program, *words],
            cwd=shell.directory,
            env=shell.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done
        assert "HEAVY []" in done.stderr, words


def test_adding_imports_neither_torch_nor_anything_for_show(shell: Shell) -> None:
    program = (
        "import sys\n"
        "from lora_core.cli.main import main\n"
        "code = main(['add', 'bundle', '--adapter', 'bob=adapters/bob'])\n"
        "heavy = {'torch', 'executorch', 'coremltools', 'transformers', 'torchao', 'peft', 'rich', 'jinja2'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=shell.directory,
        env=shell.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done
    assert "HEAVY []" in done.stderr


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:
        # Linux reports a terminal whose other end has closed as an I/O error.
        return b""


def test_garbage_is_looked_for_again_once_a_command_works() -> None:
    code = (
        "import gc, sys\n"
        "from lora_core.cli.main import main\n"
        "sys.argv[1:] = ['backends']\n"
        "main()\n"
        "sys.exit(not gc.isenabled())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
