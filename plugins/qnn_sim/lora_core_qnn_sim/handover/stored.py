"""Adapters of a stored bundle for the vendor: encodings, and weights that quantize to their sections' own integers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt

from lora_core.bundle.bundle import Bundle, BundledAdapter
from lora_core.errors import Problem, UnsupportedError
from lora_core_qnn_sim.artifacts import CONTEXT, FOUNDATION
from lora_core_qnn_sim.artifacts.context_binary import ContextBinary, read_context
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary, read_foundation
from lora_core_qnn_sim.artifacts.section import read_section
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.grouping import Group
from lora_core_qnn_sim.handover.documents import dialog_problems
from lora_core_qnn_sim.runtime.admission import Rules

Array = npt.NDArray[Any]
_ORPHAN = "Export the remaining adapters again with --emit-qairt DIR."


@attrs.frozen(kw_only=True, eq=False)
class StoredAdapters:
    """Context and foundation of a bundle, its groups, and the encodings that each adapter is executed with."""

    bundle: Bundle
    context: ContextBinary
    foundation: FoundationBinary
    groups: tuple[Group, ...]
    encodings: Mapping[str, Mapping[str, Encoding]]

    @classmethod
    def read(cls, bundle: Bundle) -> StoredAdapters:
        """Read those of `bundle`; raises `UnsupportedError` if its base is not the checkpoint's, or has no sections."""
        context = read_context(bundle.file(CONTEXT))
        foundation = read_foundation(bundle.file(FOUNDATION))
        adapters = {adapter.name: adapter for adapter in bundle.manifest.adapters}
        groups, orphans = _groups(adapters)
        if problems := _problems(bundle, context, foundation, orphans):
            raise UnsupportedError(problems)
        rules = Rules.of(context)

        def encodings(adapter: BundledAdapter) -> Mapping[str, Encoding]:
            if context.mode == "none":
                return context.branch
            return rules.admit(read_section(bundle.file(adapter.detail["encodings"])))

        return cls(
            bundle=bundle,
            context=context,
            foundation=foundation,
            groups=tuple(groups),
            encodings={name: encodings(adapter) for name, adapter in adapters.items()},
        )

    def weights(self, name: str) -> dict[str, Array]:
        """Return the LoRA weights of an adapter in float32."""
        record = self.bundle.record(name)
        assert record is not None, "names are those of the encodings"
        sections = record.adapter.detail["sections"]
        integers = read_section(self.bundle.file(sections.get("combined") or sections["weights"])).weights
        grids = self.encodings[name]
        return {key: grids[key].dequantize(array).astype(np.float32) for key, array in integers.items()}


def _problems(
    bundle: Bundle, context: ContextBinary, foundation: FoundationBinary, orphans: list[str]
) -> list[Problem]:
    problems = dialog_problems(bundle.manifest.base)
    if context.hot_switch or not bundle.manifest.adapters:
        remedy = "Export without --hot-switch." if context.hot_switch else "Add an adapter first: lora-core add."
        problems.append(Problem(what="The bundle has no sections to hand over", where=str(bundle.path), remedy=remedy))
    if foundation.basis.gains is not None or foundation.basis.splits:
        what = "The base of this bundle is rotated or split, and the vendor's tools know the checkpoint's own"
        remedy = "Export with --no-rotate --no-split-outliers, or with --emit-qairt DIR."
        problems.append(Problem(what=what, where=str(bundle.path), remedy=remedy))
    problems += [
        Problem(what=f"The encodings of group {name!r} bear the name of an adapter that was removed", remedy=_ORPHAN)
        for name in orphans
    ]
    return problems


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
