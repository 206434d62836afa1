"""Strike commands with signals at random instants: `python -m tests.endurance.strikes 100` prints what came of it.

A command runs in a process of its own, on a copy of what it works on, and gets SIGINT, SIGTERM or SIGKILL somewhere
between its start and its usual end. Then every file and directory is what it was before the command or what the command
makes, byte for byte; what it says is true; it leaves nothing in the temporary directory. After SIGKILL, which nobody
can answer, and wherever something is kept in a cache, the same command is run once more, and ends where it always does.

With `--forked` the process is a fork of one that has imported what the command needs, so that no signal is spent on
imports: of a hundred strikes on a command of a second, ninety-five would come while Python imports.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from lora_core.bundle.store import open_bundle
from tests.cli.shell import Shell
from tests.endurance.running import Blow, Ended, forked, import_what_it_needs, whole
from tests.endurance.stage import BACKENDS, Stage, State, copied, state_of, unlike

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
OUTCOMES = ("before it began", "as before", "written", "already done")
Run = Callable[[Shell, Sequence[str], Blow | None], Ended]


class WrongError(Exception):
    """A strike lost something, left something, or was told otherwise than it was."""


@attrs.frozen(kw_only=True)
class Scene:
    """A command on a stage: how it is run, how long it takes, and the files before and after it."""

    stage: Stage
    command: str
    run: Run
    seconds: float
    old: State
    new: State

    @classmethod
    def of(cls, stage: Stage, command: str, run: Run = whole) -> Scene:
        """Run the command undisturbed."""
        words = stage.words(command)
        if run is forked:
            with copied(stage) as work:
                import_what_it_needs(stage.shell(work), words)
        with copied(stage) as work:
            old, begun = state_of(work), time.perf_counter()
            done = run(stage.shell(work), words, None)
            seconds = time.perf_counter() - begun
            if done.code != 0:
                raise SystemExit(f"{command} failed: {done.err}")
            new = state_of(work)
        return cls(stage=stage, command=command, run=run, seconds=seconds, old=old, new=new)

    def strike(self, number: signal.Signals, delay: float) -> str:
        """Send the command the signal `number` after `delay` seconds and return what came of it in a word.

        Raises `WrongError`.
        """
        with copied(self.stage) as work:
            shell = self.stage.shell(work)
            ended = self.run(shell, self.stage.words(self.command), Blow(number=number, delay=delay))
            if number is signal.SIGKILL:
                return self._after_a_kill(shell, ended.code)
            outcome = self._after_a_signal(shell, ended, number)
            self._require_caches(shell)
            return outcome

    def _after_a_signal(self, shell: Shell, ended: Ended, number: signal.Signals) -> str:
        code, told, state = ended.code, ended.out + ended.err, state_of(shell.directory)
        self._expect(state in (self.old, self.new), f"files: {unlike(state, self.old)}", told)
        left = [path.name for path in (shell.directory.parent / "tmp").iterdir()]
        self._expect(left == [], f"in the temporary directory: {left}", told)
        if code == -number or (number is signal.SIGINT and "lora_core/" not in told and "Traceback" in told):
            # The interpreter had not come to our first line yet.
            self._expect(state == self.old, "Python ended, and something was done", told)
            return "before it began"
        self._expect("Traceback" not in told and "defect" not in told, "what it says", told)
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
        state = {name: digest for name, digest in state_of(work).items() if not _hidden(name)}
        old, new = ({name: each[name] for name in each if not _hidden(name)} for each in (self.old, self.new))
        self._expect(state in (old, new), f"files: {unlike(state, old)}", "")
        done = state == new
        again = self.run(shell, self.stage.words(self.command), None)
        self._expect(again.code == 0 or done, f"exit code {again.code} of the next run", again.err)
        after = state_of(work)
        self._expect(after == self.new, f"files after the next run: {unlike(after, self.new)}", again.err)
        self._require_caches(shell)
        if code == 0:
            return "already done"
        return "written" if done else "as before"

    def _require_caches(self, shell: Shell) -> None:
        """Have what the command found or kept in a cache be whole for the next ones."""
        if self.command == "bench":
            self._require_packed(shell)
        elif self.command == "export" and self.stage.cached:
            again = self.run(shell, [*self.stage.words(self.command), "--force"], None)
            self._expect(again.code == 0, f"exit code {again.code} of an export after it", again.err)
            state = state_of(shell.directory)
            self._expect(state == self.new, f"files of an export after it: {unlike(state, self.new)}", again.err)

    def _require_packed(self, shell: Shell) -> None:
        """Have two more sessions use the packed weights: the second at the latest takes them for whole."""
        for _ in range(2):
            again = self.run(shell, self.stage.words(self.command), None)
            self._expect(again.code == 0, f"exit code {again.code} of the next session", again.err)
        state = json.loads(again.out)["facts"]["packed_cache"]
        self._expect(state.startswith("proven"), f"packed weights: {state}", again.err)

    def _expect(self, held: bool, what: str, told: str) -> None:
        if not held:
            raise WrongError(f"{self.command}: {what}\n{told[-2000:]}")


def _hidden(name: str) -> bool:
    """Say whether nobody sees it: what a killed command was making, which the next one removes."""
    return name.startswith(".") or "/.lora-core" in name


def main(strikes: int, stages: Sequence[str], commands: Sequence[str], run: Run, seed: int) -> int:
    """Strike each command `strikes` times with each signal, print the table; return how often something was wrong."""
    chance, wrong = random.Random(seed), 0
    print(f"| command | usual time | signal | strikes | {' | '.join(OUTCOMES)} | wrong |")
    print(f"|{'---|' * (len(OUTCOMES) + 5)}", flush=True)
    for backend in stages:
        with tempfile.TemporaryDirectory(prefix="strikes-") as folder:
            stage = Stage.of(Path(folder), backend)
            for command in commands:
                scene = Scene.of(stage, command, run)
                for number in SIGNALS:
                    outcomes = _struck(scene, number, strikes, chance)
                    figures = " | ".join(str(outcomes[column]) for column in (*OUTCOMES, "wrong"))
                    begin = f"| `{command}`, {backend} | {scene.seconds:.2f} s | {number.name}"
                    print(f"{begin} | {strikes} | {figures} |", flush=True)
                    wrong += outcomes["wrong"]
    return wrong


def _struck(scene: Scene, number: signal.Signals, strikes: int, chance: random.Random) -> Counter[str]:
    outcomes = Counter[str]()
    for _ in range(strikes):
        try:
            outcomes[scene.strike(number, chance.uniform(0, 1.2 * scene.seconds))] += 1
        except WrongError as error:
            outcomes["wrong"] += 1
            print(error, flush=True)
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Strike commands with signals at random instants.")
    parser.add_argument("strikes", type=int)
    parser.add_argument("--backend", default="plain", help=f"Of {', '.join(BACKENDS)}; several with commas.")
    parser.add_argument("--commands", default="export,add,remove,pack")
    parser.add_argument("--forked", action="store_true", help="Spend no signal on imports.")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run_: Run = forked if given.forked else whole
    raise SystemExit(
        1 if main(given.strikes, given.backend.split(","), given.commands.split(","), run_, given.seed) else 0
    )
