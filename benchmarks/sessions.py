"""What resident adapters cost: the base alone and beside them, each adapter's steps, and changing between adapters.

    python benchmarks/sessions.py BUNDLE [BUNDLE ...] [--rounds 15] [--json FILE]

`lora-core bench` reports the same as a user sees it, in wall seconds. This runs with one thread and takes its CPU
seconds, so that other work on the machine stays out of the ratios. In every round each method reads a prompt of
16 tokens and takes 16 steps; methods take turns. Medians of all steps. Every bundle has a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

PROMPT, STEPS = 16, 16


def seconds(session: Any, adapter: str | None, tokens: Sequence[int], position: int) -> float:
    start = time.thread_time()
    session.step(adapter, tokens, position)
    return time.thread_time() - start


def steps(session: Any, adapters: Sequence[str | None], tokens: Sequence[int], rounds: int) -> dict[Any, list[float]]:
    """Return the seconds of every single-token step by adapter, after a round that does not count."""
    found: dict[Any, list[float]] = defaultdict(list)
    for done in range(rounds + 1):
        for adapter in adapters:
            session.step(adapter, tokens[:PROMPT], 0)
            for position in range(PROMPT, PROMPT + STEPS):
                took = seconds(session, adapter, tokens[position : position + 1], position)
                if done:
                    found[adapter].append(took)
    return found


def switches(session: Any, adapters: Sequence[str | None], tokens: Sequence[int], rounds: int) -> dict[str, float]:
    """Return the first step at position 0 of each adapter: after the same adapter, and after another one."""
    found: dict[str, list[float]] = {"same": [], "changed": []}
    for _ in range(rounds):
        for adapter in adapters:
            found["changed"].append(seconds(session, adapter, tokens[:1], 0))
            found["same"].append(seconds(session, adapter, tokens[:1], 0))
    return {kind: median(values) for kind, values in found.items()}


def measure(bundle: Path, rounds: int) -> dict[str, Any]:
    import lora_core

    with lora_core.open(bundle, options={"threads": 1}) as session:
        manifest = session.bundle.manifest
        tokens = [int(t) for t in np.random.default_rng(0).integers(0, manifest.base.vocab_size, PROMPT + STEPS)]
        alone = steps(session, [None], tokens, rounds)[None]
        adapters = [None, *(adapter.name for adapter in manifest.adapters)]
        for adapter in adapters:
            session.load(adapter)
        found = steps(session, adapters, tokens, rounds)
        base = median(found[None])
        return {
            "layout": manifest.options.get("layout", manifest.backend),
            "facts": {key: str(value) for key, value in session.facts.items()},
            "alone": median(alone),
            "alone_quartiles": quantiles(alone),
            "steps": {str(name): median(values) for name, values in found.items()},
            "quartiles": {str(name): quantiles(values) for name, values in found.items()},
            "overhead": {name: median(values) / base - 1 for name, values in found.items() if name},
            "ranks": {adapter.name: [adapter.rank, adapter.modules] for adapter in manifest.adapters},
            "switch": switches(session, adapters, tokens, 2 * rounds),
        }


def show(name: str, row: dict[str, Any]) -> None:
    base = row["steps"]["None"]
    print(f"\n{name} ({row['layout']}), CPU milliseconds of a step with one thread")
    print("| method | rank, modules | step | against the base |\n|---|---|---|---|")
    print(f"| base alone | | {row['alone'] * 1e3:.2f} | {row['alone'] / base - 1:+.1%} |")
    print(f"| base, adapters resident | | {base * 1e3:.2f} | |")
    for adapter, overhead in row["overhead"].items():
        rank, modules = row["ranks"][adapter]
        print(f"| {adapter} | r={rank}, {modules} | {row['steps'][adapter] * 1e3:.2f} | {overhead:+.1%} |")
    same, changed = (row["switch"][kind] * 1e3 for kind in ("same", "changed"))
    print(f"\nFirst step of the adapter in use {same:.2f} ms, of another one {changed:.2f} ms.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        print(json.dumps(measure(chosen.bundle[0], chosen.rounds)))
        return
    found = {}
    for bundle in chosen.bundle:
        command = [sys.executable, __file__, str(bundle), "--rounds", str(chosen.rounds), "--measure"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[str(bundle)] = json.loads(done.stdout.splitlines()[-1])
        show(bundle.name, found[str(bundle)])
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
