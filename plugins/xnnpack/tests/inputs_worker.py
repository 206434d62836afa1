"""Run a bundle whose adapters are inputs of its program: `python inputs_worker.py BUNDLE PACKED` prints JSON.

It has a process of its own, because the weight cache belongs to the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lora_core

TOKENS = (5, 17, 3, 99, 42)
SELECTIONS = (None, "alpha", "zulu", "zulu@0.5", "zulu@-1.5", "zulu@0", "alpha:0.5+zulu:-0.3")


def logits(session: Any, selection: str | None) -> list[float]:
    """Feed the tokens in two calls, and return the logits of the last."""
    session.reset()
    session.step(selection, TOKENS[:-1], 0)
    found: list[float] = session.step(selection, TOKENS[-1:], len(TOKENS) - 1).tolist()
    return found


def told(session: Any) -> list[list[float]]:
    """Tell the session a strength, take it back, and return the logits before, between and after."""
    found = [logits(session, "zulu")]
    for strength in (0.5, 1.0):
        session.strength("zulu", strength)
        found.append(logits(session, "zulu"))
    return found


def unloaded(session: Any) -> dict[str, Any]:
    """Let go of all adapters, then of the base; return what is left after each, and the logits of an adapter again."""
    assert "/adapters/" in Path("/proc/self/maps").read_text()
    for selection in SELECTIONS[1:]:
        session.unload(selection)
    mapped = Path("/proc/self/maps").read_text().count("/adapters/")
    left = {"files": mapped, "methods": sorted(session._opened)}
    session.unload(None)
    return {"left": left, "at last": sorted(session._opened), "again": logits(session, "zulu")}


def main(bundle: str, packed: str) -> None:
    """Print everything that the tests ask for."""
    with lora_core.open(bundle) as session:
        found: dict[str, Any] = {"selections": [logits(session, each) for each in SELECTIONS]}
        found |= {"told": told(session), "unloaded": unloaded(session)}
    with lora_core.open(bundle, options={"packed_cache": packed}) as session:
        found["packed"] = [logits(session, each) for each in SELECTIONS]
        found["packed cache"] = str(session.facts["packed_cache"])
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
