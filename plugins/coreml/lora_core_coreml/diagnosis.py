"""Which versions of the tools are installed, and whether they are those this plugin was proven on."""

from __future__ import annotations

import platform
from importlib import metadata

from lora_core.backend import Diagnosis
from lora_core.errors import Problem
from lora_core_coreml.hooks import COREML


def installed() -> dict[str, str]:
    """Return the versions of the distributions that decide a bundle's bytes; a missing one is left out."""
    found = {}
    for name in ("lora-core-coreml", *COREML.requires):
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return found


def diagnose() -> Diagnosis:
    """Report missing or other versions, and whether this machine can execute programs or only evaluate them."""
    versions = installed()
    problems = []
    for name, wanted in COREML.requires.items():
        if name not in versions:
            problems.append(Problem(what=f"{name} is not installed", remedy=f"pip install {name}=={wanted}"))
        elif versions[name] != wanted:
            what = f"{name} is {versions[name]}; this plugin was proven on {wanted}"
            problems.append(Problem(what=what, remedy=f"pip install {name}=={wanted}"))
    can_run = platform.system() == "Darwin"
    facts = {**versions, "execution": "CoreML runtime" if can_run else "reference evaluation (CoreML needs macOS)"}
    return Diagnosis(problems=tuple(problems), facts=facts)
