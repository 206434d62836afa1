"""Read a bundle over and over while another process changes it: `python -m tests.endurance.readers 200` prints a table.

The other process removes and adds an adapter; whatever is read beside it is the bundle before or after one of these
changes, whole, and passes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import attrs

import lora_core
from lora_core.errors import LoraCoreError
from tests.endurance.stage import BACKENDS, Stage

_WRITER = """
import sys
import lora_core
bundle, name, adapter, changes = sys.argv[1:]
for number in range(int(changes)):
    lora_core.remove(bundle, [name])
    lora_core.add(bundle, {name: adapter})
"""


@attrs.frozen(kw_only=True)
class Readings:
    """What inspections found: how often each set of adapters, and every problem."""

    adapters: Counter[frozenset[str]]
    problems: Sequence[str]


def read_beside_a_writer(bundle: Path, name: str, adapter: Path, changes: int) -> Readings:
    """Inspect `bundle` as long as another process removes adapter `name` and adds it again, `changes` times."""
    seen, problems = Counter[frozenset[str]](), []
    words = [sys.executable, "-c", _WRITER, str(bundle), name, str(adapter), str(changes)]
    with subprocess.Popen(words) as writer:
        while writer.poll() is None:
            try:
                report = lora_core.inspect(bundle)
            except (LoraCoreError, AssertionError) as error:
                problems.append(f"{type(error).__name__}: {error}")
            else:
                problems += map(str, report.problems)
                seen[frozenset(each.name for each in report.bundle.manifest.adapters)] += 1
    if writer.returncode != 0:
        problems.append(f"the writer ended with {writer.returncode}")
    return Readings(adapters=seen, problems=problems)


def main(changes: int, backends: Sequence[str]) -> int:
    """Print the table; return how many readings went wrong."""
    wrong = 0
    print("| bundle | changes | inspections | of them without the adapter | wrong |\n|---|---|---|---|---|", flush=True)
    for backend in backends:
        with tempfile.TemporaryDirectory(prefix="readers-") as folder:
            work = Stage.of(Path(folder), backend).root / "pristine"
            readings = read_beside_a_writer(work / "bundle", "alice", work / "adapters" / "alice", changes)
        inspections, without = readings.adapters.total(), readings.adapters[frozenset()]
        print(f"| {backend} | {2 * changes} | {inspections} | {without} | {len(readings.problems)} |", flush=True)
        for problem in readings.problems[:5]:
            print(problem, file=sys.stderr)
        wrong += len(readings.problems)
    return wrong


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read bundles beside a process that changes them.")
    parser.add_argument("changes", type=int)
    parser.add_argument("--backend", default=",".join(BACKENDS)[len("plain,") :])
    given = parser.parse_args()
    raise SystemExit(1 if main(given.changes, given.backend.split(",")) else 0)
