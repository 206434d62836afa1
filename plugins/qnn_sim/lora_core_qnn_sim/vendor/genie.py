"""Whether the vendor's Genie takes a configuration that was written for it, and holds the dialog that it describes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import attrs

from lora_core_qnn_sim.vendor import genie_process
from lora_core_qnn_sim.vendor.asking import ask
from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED, VendorLibraries
from lora_core_qnn_sim.vendor.verdict import Verdict

_SECONDS, _DIALOG_SECONDS = 120, 600


def check_genie(config: Path) -> Verdict:
    """Ask Genie whether it takes a configuration."""
    libraries = VendorLibraries.find()
    if libraries is None:
        return Verdict(outcome="unchecked", detail=NOT_INSTALLED)
    return ask(libraries, genie_process.__file__, [str(libraries.genie), str(config)], seconds=_SECONDS)[0]


@attrs.frozen(kw_only=True)
class GenieAnswer:
    """What came of a dialog, and the tokens that it was answered with."""

    verdict: Verdict
    tokens: tuple[int, ...] = ()


def hold_dialog(config: Path, tokens: Sequence[int], count: int) -> GenieAnswer:
    """Have Genie load what `config` names and go on from `tokens` with `count` more, in emulation."""
    libraries = VendorLibraries.find()
    if libraries is None:
        return GenieAnswer(verdict=Verdict(outcome="unchecked", detail=NOT_INSTALLED))
    asked = [str(libraries.genie), str(config), str(count), *map(str, tokens)]
    verdict, said = ask(libraries, genie_process.__file__, asked, seconds=_DIALOG_SECONDS)
    if verdict.outcome != "accepted":
        return GenieAnswer(verdict=verdict)
    # Genie prints as well.
    line = next(line for line in reversed(said.splitlines()) if line.startswith(genie_process.ANSWER))
    return GenieAnswer(verdict=verdict, tokens=tuple(json.loads(line.removeprefix(genie_process.ANSWER))))
