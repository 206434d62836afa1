"""A hand-over from a stored bundle: also of adapters that were added after the export.

LoRA weights are those of the sections, on their grids: quantized again under the encodings beside them, they give the
same integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.bundle.bundle import Bundle, BundledAdapter
from lora_core.errors import Problem, UnsupportedError
from lora_core_qnn_sim.artifacts import CONTEXT, FOUNDATION
from lora_core_qnn_sim.artifacts.context_binary import read_context
from lora_core_qnn_sim.artifacts.foundation import read_foundation
from lora_core_qnn_sim.artifacts.section import read_section
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.grouping import Group
from lora_core_qnn_sim.handover.writer import write_handover
from lora_core_qnn_sim.runtime.admission import Rules

Array = npt.NDArray[Any]
_ORPHAN = "Export the remaining adapters again with --emit-qairt DIR."


def handover_from_bundle(bundle: Bundle, directory: Path) -> list[str]:
    """Write the vendor's files for every adapter of `bundle` and return the adapters' names.

    Raises `UnsupportedError` for a bundle whose base is not the checkpoint's own, or that has no sections.
    """
    context = read_context(bundle.file(CONTEXT))
    foundation = read_foundation(bundle.file(FOUNDATION))
    adapters = {adapter.name: adapter for adapter in bundle.manifest.adapters}
    problems = []
    if context.hot_switch or not adapters:
        problems.append(Problem(what="The bundle has no sections to hand over", where=str(bundle.path)))
    if foundation.basis.gains is not None or foundation.basis.splits:
        what = "The base of this bundle is rotated or split, and the vendor's tools know the checkpoint's own"
        remedy = "Export with --no-rotate --no-split-outliers, or with --emit-qairt DIR."
        problems.append(Problem(what=what, where=str(bundle.path), remedy=remedy))
    groups, orphans = _groups(adapters)
    problems += [
        Problem(what=f"The encodings of group {name!r} bear the name of an adapter that was removed", remedy=_ORPHAN)
        for name in orphans
    ]
    if problems:
        raise UnsupportedError(problems)
    rules = Rules.of(context)

    def encodings(adapter: BundledAdapter) -> Mapping[str, Encoding]:
        if context.mode == "none":
            return context.branch
        return rules.admit(read_section(bundle.file(adapter.detail["encodings"])))

    used = {name: encodings(adapter) for name, adapter in adapters.items()}

    def weights(name: str) -> dict[str, Array]:
        sections = adapters[name].detail["sections"]
        integers = read_section(bundle.file(sections.get("combined") or sections["weights"])).weights
        return {key: used[name][key].dequantize(array).astype(np.float32) for key, array in integers.items()}

    write_handover(directory, context, foundation, used, weights, groups, bundle.manifest.base)
    return list(adapters)


def _groups(adapters: Mapping[str, BundledAdapter]) -> tuple[list[Group], list[str]]:
    """Return the groups of a bundle, each led by the adapter with the encodings, and those that lost their leader."""
    members: dict[str, list[str]] = {}
    for name, adapter in adapters.items():
        # The adapters of a hot-switch concurrency have neither.
        group, sections = adapter.detail.get("group"), adapter.detail.get("sections", {})
        if group and "combined" not in sections:
            members.setdefault(group, []).append(name)
    groups, orphans = [], []
    for group, names in members.items():
        leaders = [name for name in names if "encodings" in adapters[name].detail["sections"]]
        if not leaders:
            orphans.append(group)
        ordered = (*leaders, *(name for name in names if name not in leaders))
        groups.append(Group(name=group, members=ordered, split=True))
    return groups, orphans
