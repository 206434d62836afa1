"""Which versions of the tools are installed, and whether they are those this plugin was proven on."""

from __future__ import annotations

import platform

from lora_core.backend import Diagnosis
from lora_core.plugin import requirements
from lora_core_coreml.hooks import COREML


def installed() -> dict[str, str]:
    """Return the versions of the distributions that decide a bundle's bytes; a missing one is left out."""
    versions = {name: requirements.installed(name) for name in ("lora-core-coreml", *COREML.requires)}
    return {name: version.partition("+")[0] for name, version in versions.items() if version is not None}


def can_execute() -> bool:
    """Say whether this machine has CoreML."""
    return platform.system() == "Darwin"


def diagnose() -> Diagnosis:
    """Report missing or other versions, and whether this machine can execute programs or only evaluate them."""
    execution = "reference evaluation, CoreML itself with --execute" if can_execute() else "reference evaluation only"
    return Diagnosis(problems=requirements.missing(COREML), facts={**installed(), "execution": execution})
