"""What an adapter costs in sessions of two bundles of one base, in turn: as constants, and as inputs.

    OMP_NUM_THREADS=1 python benchmarks/adapters_in_sessions.py CONSTANTS INPUTS ADAPTER [--rounds 15]

Both bundles hold ADAPTER; one thread. CPU milliseconds, medians and the least of rounds taken in turn: a step, a prompt
of 128 tokens, and loading the adapter (with nothing else of it there: the first time in a session, and beside another
adapter, at strength 0.5 where the bundle takes strengths). Anonymous memory after the adapter came and went.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import lora_core
from lora_core.runtime.memory import measure

PROMPT = [(7 * index) % 5000 + 10 for index in range(128)]
STEPS = 4


def timed(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return 1000 * (time.process_time() - start)


def prompt(session: Any, adapter: str | None) -> float:
    session.reset()
    return timed(lambda: session.step(adapter, PROMPT, 0))


def steps(session: Any, adapter: str | None) -> float:
    """Return the time of a step, behind a prompt that `prompt` fed."""

    def feed() -> None:
        for done in range(STEPS):
            session.step(adapter, [11], len(PROMPT) + done)

    return timed(feed) / STEPS


def loading(session: Any, adapter: str) -> float:
    session.unload(adapter)
    return timed(lambda: session.load(adapter))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("constants")
    parser.add_argument("inputs")
    parser.add_argument("adapter")
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    took: dict[str, list[float]] = {}
    with (
        lora_core.open(chosen.constants, options={"threads": 1}) as constants,
        lora_core.open(chosen.inputs, options={"threads": 1}) as inputs,
    ):
        sessions = {"constants": constants, "inputs": inputs}
        for session in sessions.values():
            session.load(None)
            session.load(chosen.adapter)
        for _ in range(chosen.rounds):
            for name, session in sessions.items():
                for which, adapter in (("base", None), ("adapter", chosen.adapter)):
                    took.setdefault(f"{name}: prompt, {which}", []).append(prompt(session, adapter))
                    took.setdefault(f"{name}: step, {which}", []).append(steps(session, adapter))
                took.setdefault(f"{name}: load", []).append(loading(session, chosen.adapter))
            other = f"{chosen.adapter}@0.5"
            inputs.load(other)
            took.setdefault("inputs: load beside another", []).append(loading(inputs, chosen.adapter))
            inputs.unload(other)
        print("| CPU ms | median | least |\n|---|---|---|")
        for what, times in sorted(took.items()):
            print(f"| {what} | {median(times):.2f} | {min(times):.2f} |", flush=True)
        for name, session in sessions.items():
            session.reset()
            loaded = measure().anonymous
            session.unload(chosen.adapter)
            left = measure().anonymous
            print(f"{name}: unloading returns {(loaded - left) / 1e6:.1f} MB of anonymous memory")


if __name__ == "__main__":
    main()
