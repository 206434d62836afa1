"""Run bundles of the multi-method layout: `python multimethod_worker.py SCENARIO BUNDLE [...]` prints JSON.

Each scenario has a process of its own, because the weight cache belongs to the process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import lora_core
from lora_core.errors import LoraCoreError

TOKENS = (5, 17, 3, 99, 42)


def switching(bundle: str, *adapters: str) -> dict[str, Any]:
    """Run the base and `adapters` one after another, then the base again, and note a continuation without a reset."""
    told: dict[str, Any] = {}
    with lora_core.open(bundle) as session:
        for adapter in (None, *adapters):
            session.reset()
            prefill = session.step(adapter, TOKENS, 0)
            decode = session.step(adapter, [7], len(TOKENS))
            told[adapter or "forward"] = [prefill.tolist(), decode.tolist()]
        try:
            session.step(None, [7], len(TOKENS) + 1)
        except LoraCoreError as error:
            told["continued"] = str(error)
        told["again"] = session.step(None, TOKENS, 0).tolist()
    return told


def adding(bundle: str, *references: str) -> dict[str, Any]:
    """Add adapters, given as NAME=DIRECTORY, and list the heavy modules that it took."""
    lora_core.add(bundle, dict(reference.split("=", 1) for reference in references))
    return {"heavy": sorted({"torch", "executorch", "transformers"} & set(sys.modules))}


if __name__ == "__main__":
    print(json.dumps({"switching": switching, "adding": adding}[sys.argv[1]](*sys.argv[2:])))
