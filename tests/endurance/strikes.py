"""Strike commands with signals at random instants: `python -m tests.endurance.strikes 100` prints what came of it.

A command runs in a process of its own, on a copy of what it works on, and gets SIGINT, SIGTERM or SIGKILL somewhere
between its start and its usual end. Then every file in its directory is what it was before the command or what the
command makes, byte for byte; what it says is true; it leaves nothing in the temporary directory. After SIGKILL, which
nobody can answer, the same command is run once more, and ends where it always does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lora_core.bundle.store import open_bundle
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint
from tests.cli.shell import Shell
from tests.hub.distributions import install_example

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
EXPORT_OPTIONS: Mapping[str, Sequence[str]] = {
    "plain": (),
    "qnn_sim": ("--context-len", "16", "--input-len", "8"),
    "xnnpack": ("--max-context-len", "16", "--max-seq-len", "8", "--no-cache"),
}
OUTCOMES = ("before it began", "as before", "written", "already done")
State = dict[str, str]


class WrongError(Exception):
    """A strike lost something, left something, or was told otherwise than it was."""


@attrs.frozen(kw_only=True)
class Stage:
    """A directory with a model, adapters `alice` and `bob` and a bundle that has `alice`; commands work on copies."""

    root: Path
    backend: str

    @classmethod
    def of(cls, root: Path, backend: str) -> Stage:
        """Make one in `root`."""
        stage = cls(root=root, backend=backend)
        work = root / "pristine"
        write_tiny_checkpoint(work / "model")
        write_tiny_adapter(work / "adapters" / "alice", seed=1)
        write_tiny_adapter(work / "adapters" / "bob", seed=2)
        if backend == "plain":
            install_example(root / "site")
        done = stage.shell(work).run(*stage.words("export"))
        if done.code != 0:
            raise SystemExit(f"the export failed: {done.err}")
        (work / "out").rename(work / "bundle")
        return stage

    def shell(self, directory: Path) -> Shell:
        """Return a shell in `directory`, in which the backend is installed."""
        site = self.root / "site"
        return Shell(directory=directory, sites=(site,) if site.exists() else ())

    def words(self, command: str) -> Sequence[str]:
        """Return the words of one of the commands that are struck."""
        return {
            "export": (
                *("export", "--backend", self.backend, "--model", "model", *EXPORT_OPTIONS[self.backend]),
                *("--adapter", "alice=adapters/alice", "-o", "out"),
            ),
            "add": ("add", "bundle", "--adapter", "bob=adapters/bob"),
            "remove": ("remove", "bundle", "alice"),
            "pack": ("pack", "bundle", "alice", "-o", "alice.lora"),
            "bench": (
                *("bench", "bundle", "--adapter", "alice", "--prompt-tokens", "2", "--decode-tokens", "1"),
                *("--rounds", "1", "--packed-cache", "packed", "--json"),
            ),
        }[command]


@attrs.frozen(kw_only=True)
class Scene:
    """A command on a stage: how long it takes, and the files before and after it."""

    stage: Stage
    command: str
    seconds: float
    old: State
    new: State

    @classmethod
    def of(cls, stage: Stage, command: str) -> Scene:
        """Run the command undisturbed."""
        with _copied(stage) as work:
            old, begun = _state(work), time.perf_counter()
            done = stage.shell(work).run(*stage.words(command))
            seconds = time.perf_counter() - begun
            if done.code != 0:
                raise SystemExit(f"{command} failed: {done.err}")
            new = _state(work)
        return cls(stage=stage, command=command, seconds=seconds, old=old, new=new)

    def strike(self, number: signal.Signals, delay: float) -> str:
        """Send the command the signal `number` after `delay` seconds and return what came of it in a word.

        Raises `WrongError`.
        """
        with _copied(self.stage) as work:
            shell = self.stage.shell(work)
            code, told = _struck(shell, self.stage.words(self.command), number, delay)
            if number is signal.SIGKILL:
                return self._after_a_kill(shell, code)
            return self._after_a_signal(shell, code, told, number)

    def _after_a_signal(self, shell: Shell, code: int, told: str, number: signal.Signals) -> str:
        state = _state(shell.directory)
        self._expect(state in (self.old, self.new), f"files: {_unlike(state, self.old)}", told)
        left = [path.name for path in (shell.directory.parent / "tmp").iterdir()]
        self._expect(left == [], f"in the temporary directory: {left}", told)
        if code == -number or (number is signal.SIGINT and "lora_core/" not in told and "Traceback" in told):
            # The interpreter had not come to our first line yet.
            self._expect(state == self.old, "Python ended, and something was done", told)
            return "before it began"
        self._expect("Traceback" not in told and "defect" not in told, "what it says", told)
        self._require_packed(shell)
        if code == 0:
            self._expect(state == self.new, "it succeeded, and nothing was done", told)
            return "already done"
        self._expect(code == CODES[number], f"exit code {code}", told)
        if "nothing was changed" in told:
            self._expect(state == self.old, "it says that nothing was changed", told)
            return "as before"
        self._expect(state == self.new, "it says that something was written", told)
        return "written"

    def _after_a_kill(self, shell: Shell, code: int) -> str:
        work = shell.directory
        if (work / "bundle").exists():
            open_bundle(work / "bundle")  # finishes or undoes what was begun
        state = _state(work)
        visible = {name: digest for name, digest in state.items() if not name.startswith(".")}
        self._expect(visible in (self.old, self.new), f"files: {_unlike(visible, self.old)}", "")
        again = shell.run(*self.stage.words(self.command))
        done = visible == self.new
        self._expect(again.code == 0 or done, f"exit code {again.code} of the next run", again.err)
        after = _state(work)
        self._expect(after == self.new, f"files after the next run: {_unlike(after, self.new)}", again.err)
        self._require_packed(shell)
        if code == 0:
            return "already done"
        return "written" if done else "as before"

    def _require_packed(self, shell: Shell) -> None:
        """Have two more sessions use the packed weights: the second at the latest takes them for whole."""
        if self.command != "bench":
            return
        for _ in range(2):
            again = shell.run(*self.stage.words(self.command))
            self._expect(again.code == 0, f"exit code {again.code} of the next session", again.err)
        state = json.loads(again.out)["facts"]["packed_cache"]
        self._expect(state.startswith("proven"), f"packed weights: {state}", again.err)

    def _expect(self, held: bool, what: str, told: str) -> None:
        if not held:
            raise WrongError(f"{self.command}: {what}\n{told[-2000:]}")


def _struck(shell: Shell, words: Sequence[str], number: signal.Signals, delay: float) -> tuple[int, str]:
    with subprocess.Popen(
        shell.command(*words),
        cwd=shell.directory,
        env=shell.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What the parent ignores would stay ignored: a shell that starts this in the background has SIGINT so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    ) as process:
        time.sleep(delay)
        process.send_signal(number)
        told, _ = process.communicate()
    return process.returncode, told


class _copied:
    """A copy of a stage's directory, in a directory of its own."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._root = Path(tempfile.mkdtemp(dir=stage.root))

    def __enter__(self) -> Path:
        return Path(shutil.copytree(self._stage.root / "pristine", self._root / "work"))

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self._root)


def _state(directory: Path) -> State:
    """Return the hash of every file, but of packed weights, whose proof says when they were made."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    names = {path: path.relative_to(directory).as_posix() for path in files}
    return {
        names[path]: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not names[path].startswith("packed/")
    }


def _unlike(state: State, expected: State) -> list[str]:
    return sorted(name for name in {*state, *expected} if state.get(name) != expected.get(name))


def main(strikes: int, backend: str, commands: Sequence[str], seed: int) -> int:
    """Strike each command `strikes` times with each signal, print the table; return how often something was wrong."""
    chance, wrong = random.Random(seed), 0
    with tempfile.TemporaryDirectory(prefix="strikes-") as folder:
        stage = Stage.of(Path(folder), backend)
        print(f"| command | signal | strikes | {' | '.join(OUTCOMES)} | wrong |")
        print("|---|---|---|---|---|---|---|---|", flush=True)
        for command in commands:
            scene = Scene.of(stage, command)
            for number in SIGNALS:
                outcomes = Counter[str]()
                for _ in range(strikes):
                    try:
                        outcomes[scene.strike(number, chance.uniform(0, 1.5 * scene.seconds))] += 1
                    except WrongError as error:
                        outcomes["wrong"] += 1
                        print(error, flush=True)
                figures = " | ".join(str(outcomes[column]) for column in (*OUTCOMES, "wrong"))
                print(f"| `{command}`, {backend} | {number.name} | {strikes} | {figures} |", flush=True)
                wrong += outcomes["wrong"]
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Strike commands with signals at random instants.")
    parser.add_argument("strikes", type=int)
    parser.add_argument("--backend", choices=EXPORT_OPTIONS, default="plain")
    parser.add_argument("--commands", default="export,add,remove,pack")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    raise SystemExit(1 if main(given.strikes, given.backend, given.commands.split(","), given.seed) else 0)
