"""Whether the vendor's Genie takes a configuration that was written for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import attrs

from lora_core_qnn_sim.vendor import genie_process
from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED, VendorLibraries

_SECONDS = 120


@attrs.frozen(kw_only=True)
class Verdict:
    """What came of asking; `detail` is by whom it was accepted, why it was refused, or why nobody was asked."""

    outcome: Literal["accepted", "refused", "unchecked"]
    detail: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.detail}"


def check_genie(config: Path) -> Verdict:
    """Ask Genie, in a process of its own: input that it did not expect can bring it down."""
    libraries = VendorLibraries.find()
    if libraries is None:
        return Verdict(outcome="unchecked", detail=NOT_INSTALLED)
    # Isolated: modules of this process's environment have no part in one that needs none.
    asked = [sys.executable, "-I", genie_process.__file__, str(libraries.genie), str(config)]
    try:
        ran = subprocess.run(asked, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Verdict(outcome="refused", detail=f"{libraries.name} did not answer in {_SECONDS} seconds")
    if ran.returncode == 0:
        return Verdict(outcome="accepted", detail=libraries.name)
    said = " ".join(f"{ran.stdout} {ran.stderr}".split())[-500:]
    if ran.returncode == genie_process.NOT_LOADED:
        return Verdict(outcome="unchecked", detail=f"{libraries.name} cannot be loaded: {said}")
    how = "says" if ran.returncode == genie_process.REFUSED else f"ended with code {ran.returncode} and says"
    return Verdict(outcome="refused", detail=f"{libraries.name} {how}: {said}")
