"""A script in a process of its own: input that the vendor's libraries did not expect can bring a process down."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_core_qnn_sim.vendor.libraries import VendorLibraries
from lora_core_qnn_sim.vendor.verdict import Verdict

REFUSED, NOT_LOADED = 3, 4
"""What scripts end with for a refusal, and for libraries that are not there or not for this machine."""


def ask(libraries: VendorLibraries, script: str, arguments: Sequence[str], *, seconds: int) -> tuple[Verdict, str]:
    """Run `script`, and return what its exit code says, and what it printed."""
    # Isolated: modules of this process's environment have no part in one that needs none.
    asked = [sys.executable, "-I", str(Path(script)), *arguments]
    try:
        ran = subprocess.run(
            asked,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            cwd=Path(script).parent,
        )
    except subprocess.TimeoutExpired:
        # Emulation is slow, and how slow is the machine's affair.
        return Verdict(outcome="unchecked", detail=f"{libraries.name} did not answer in {seconds} seconds"), ""
    if ran.returncode == 0:
        return Verdict(outcome="accepted", detail=libraries.name), ran.stdout
    said = " ".join(f"{ran.stdout} {ran.stderr}".split())[-500:]
    if ran.returncode == NOT_LOADED:
        return Verdict(outcome="unchecked", detail=f"{libraries.name} cannot be loaded: {said}"), ran.stdout
    how = "says" if ran.returncode == REFUSED else f"ended with code {ran.returncode} and says"
    return Verdict(outcome="refused", detail=f"{libraries.name} {how}: {said}"), ran.stdout
