"""Whether the XNNPACK backend can work on this machine, found without importing ExecuTorch."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from lora_core.backend import Diagnosis
from lora_core.errors import Problem

_PROVEN = {"executorch": "1.5.1", "torch": "2.13.0", "torchao": "0.18.0"}


def diagnose() -> Diagnosis:
    """Return the versions that are installed and what is missing."""
    problems: list[Problem] = []
    facts: dict[str, str] = {}
    for name, proven in _PROVEN.items():
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            problems.append(Problem(what=f"{name} is not installed", remedy=f"pip install {name}=={proven}"))
            continue
        if facts[name].partition("+")[0] != proven:
            problems.append(
                Problem(what=f"{name} is {facts[name]}, proven is {proven}", remedy=f"pip install {name}=={proven}")
            )
    facts["xnnpack library"] = _library()
    return Diagnosis(problems=tuple(problems), facts=facts)


def _library() -> str:
    spec = importlib.util.find_spec("executorch")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found = sorted(Path(place, "lib").glob("libexecutorch_backend_xnnpack.*"))
        if found:
            return found[0].name
    return "not found"
