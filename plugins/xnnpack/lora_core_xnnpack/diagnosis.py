"""Whether the XNNPACK backend can work on this machine, found without importing ExecuTorch."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from lora_core.backend import Diagnosis
from lora_core.plugin.requirements import installed, missing
from lora_core_xnnpack.hooks import XNNPACK


def diagnose() -> Diagnosis:
    """Return the versions that are installed and what is missing."""
    facts = {name: installed(name) or "not installed" for name in XNNPACK.requires}
    return Diagnosis(problems=missing(XNNPACK), facts={**facts, "xnnpack library": _library()})


def _library() -> str:
    spec = importlib.util.find_spec("executorch")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found = sorted(Path(place, "lib").glob("libexecutorch_backend_xnnpack.*"))
        if found:
            return found[0].name
    return "not found"
