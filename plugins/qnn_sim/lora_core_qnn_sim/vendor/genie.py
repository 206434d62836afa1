"""Whether the vendor's Genie takes a configuration that was written for it, and holds the dialog that it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from lora_core_qnn_sim.vendor import genie_process
from lora_core_qnn_sim.vendor.asking import ask
from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED, VendorLibraries
from lora_core_qnn_sim.vendor.verdict import Verdict

_SECONDS, _DIALOG_SECONDS = 120, 1800


def check_genie(config: Path) -> Verdict:
    """Ask Genie whether it takes a configuration."""
    libraries = VendorLibraries.find()
    if libraries is None:
        return Verdict(outcome="unchecked", detail=NOT_INSTALLED)
    return ask(libraries, genie_process.__file__, [str(libraries.genie), str(config)], seconds=_SECONDS)[0]


@attrs.frozen(kw_only=True)
class GenieAnswers:
    """What came of a dialog, and the tokens that each query was answered with."""

    verdict: Verdict
    tokens: tuple[tuple[int, ...], ...] = ()


def hold_dialog(
    config: Path, tokens: Sequence[int], count: int, adapter: str, strengths: Sequence[Mapping[str, float]]
) -> GenieAnswers:
    """Have Genie load what `config` names and apply `adapter`, in emulation.

    With each of `strengths`, by their names, it goes on from `tokens` with `count` more.
    """
    libraries = VendorLibraries.find()
    if libraries is None:
        return GenieAnswers(verdict=Verdict(outcome="unchecked", detail=NOT_INSTALLED))
    query = {
        "tokens": list(tokens),
        "count": count,
        "adapter": adapter,
        "strengths": [dict(each) for each in strengths],
    }
    asked = [str(libraries.genie), str(config), json.dumps(query)]
    verdict, said = ask(libraries, genie_process.__file__, asked, seconds=_DIALOG_SECONDS)
    if verdict.outcome != "accepted":
        return GenieAnswers(verdict=verdict)
    # Genie prints as well.
    line = next(line for line in reversed(said.splitlines()) if line.startswith(genie_process.ANSWER))
    answers = json.loads(line.removeprefix(genie_process.ANSWER))
    return GenieAnswers(verdict=verdict, tokens=tuple(tuple(each) for each in answers))
