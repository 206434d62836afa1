"""Writes the sections of adapters for a context: calibrate, share, quantize, write.

Export and link both come here with the same foundation file, so both write the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy.typing as npt

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.backend import Artifacts, WrittenFile
from lora_core.bundle.bundle import Bundle, Method
from lora_core.errors import UnsupportedError
from lora_core.events import Emit, StageAdvanced, Warned, stage
from lora_core.sharing.proof import require_foundation
from lora_core_qnn_sim.artifacts import CONTEXT, FOUNDATION, SECTIONS
from lora_core_qnn_sim.artifacts.context_binary import ContextBinary, read_context, zero_lora
from lora_core_qnn_sim.artifacts.encoding_tensors import encodings_id
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary, read_foundation
from lora_core_qnn_sim.artifacts.section import DEFAULT_ADAPTER, SectionPart, section_file, write_section
from lora_core_qnn_sim.calibrate.calibrate import calibrate_adapter, shared_encodings
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.grouping import Group, parts_of
from lora_core_qnn_sim.lora import quantize_lora, real_lora, saturated
from lora_core_qnn_sim.modes import encodings_scope

Array = npt.NDArray[Any]
_CALIBRATE = "calibrate adapters"


@attrs.frozen(kw_only=True)
class LinkedAdapter:
    """What one adapter got: its section files by part, where its encodings come from, and their id."""

    name: str
    files: Mapping[SectionPart, str]
    encodings_file: str
    encodings_id: str
    group: str

    @property
    def detail(self) -> dict[str, Any]:
        """What a session and a hand-over find again in the manifest."""
        return {
            "sections": dict(self.files),
            "encodings": self.encodings_file,
            "encodings_id": self.encodings_id,
            "group": self.group,
        }


def link(bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
    """Write the sections of `adapters`, each with encodings of its own; raises `UnsupportedError` for hot switch."""
    context = read_context(bundle.file(CONTEXT))
    if context.hot_switch:
        raise UnsupportedError(
            "A hot-switch context holds all its adapters in one concurrency and takes no more",
            where=str(bundle.path),
            remedy="Export again with every adapter, or without --hot-switch.",
        )
    foundation = read_foundation(bundle.file(FOUNDATION))
    require_foundation(bundle, foundation.digest)
    own = calibrated(context, foundation, adapters, emit, {})
    with stage(emit, "write sections"):
        linked = write_adapters(out, context, foundation, adapters, own, (), emit)
    return Artifacts(
        foundation=foundation.digest,
        files=section_files(linked),
        methods=methods(adapters),
        adapter_details=details(linked),
    )


def section_files(linked: Sequence[LinkedAdapter]) -> tuple[WrittenFile, ...]:
    """Return the section files of `linked`, each with the adapter that takes it along when it is removed."""
    # Encodings that other members need stay when their leader is removed.
    shared = {other.encodings_file for other in linked if not {"encodings", "combined"} & set(other.files)}
    return tuple(
        WrittenFile(path=path, role="adapter-data", adapter=None if path in shared else each.name)
        for each in linked
        for path in each.files.values()
    )


def unneeded(bundle: Bundle, gone: frozenset[str]) -> tuple[str, ...]:
    """Return the files of no single adapter that nobody needs once the adapters `gone` are."""
    default = bundle.manifest.detail.get("default")
    shared = [each.path for each in bundle.manifest.base_artifacts if each.role == "adapter-data"]
    shared = [path for path in shared if path != default]
    if not shared:  # looking at every adapter takes as long as there are adapters
        return ()
    left = [adapter.detail for adapter in bundle.manifest.adapters if adapter.name not in gone]
    needed = {path for detail in left for path in (*detail.get("sections", {}).values(), detail.get("encodings"))}
    return tuple(path for path in shared if path not in needed)


def methods(adapters: Sequence[PlacedAdapter]) -> tuple[Method, ...]:
    """Return the method of each adapter: the one program with its sections applied."""
    return tuple(Method(name=placed.name, program=CONTEXT, adapter=placed.name) for placed in adapters)


def details(linked: Sequence[LinkedAdapter]) -> dict[str, dict[str, Any]]:
    """Return what the manifest says of each adapter."""
    return {each.name: each.detail for each in linked}


def calibrated(
    context: ContextBinary,
    foundation: FoundationBinary,
    adapters: Sequence[PlacedAdapter],
    emit: Emit,
    supplied: Mapping[str, Mapping[str, Encoding]],
) -> dict[str, dict[str, Encoding]]:
    """Return each adapter's own encodings for the context's mode; `supplied` ones replace the calibrated."""
    own = {}
    with stage(emit, _CALIBRATE):
        for done, placed in enumerate(adapters, 1):
            weights = real_lora(context.spec, [placed], foundation.basis)
            encodings = calibrate_adapter(context.spec, foundation, weights, context.mode)
            own[placed.name] = encodings | dict(supplied.get(placed.name, {}))
            emit(StageAdvanced(stage=_CALIBRATE, done=done, total=len(adapters)))
    return own


def write_adapters(
    out: Path,
    context: ContextBinary,
    foundation: FoundationBinary,
    adapters: Sequence[PlacedAdapter],
    own: Mapping[str, Mapping[str, Encoding]],
    groups: Sequence[Group],
    emit: Emit,
) -> list[LinkedAdapter]:
    """Write the sections of `adapters` into `out` and return what each got."""
    (out / SECTIONS).mkdir(exist_ok=True)
    used = effective_encodings(context, own, groups)
    linked = []
    for placed in adapters:
        encodings = used[placed.name]
        real = real_lora(context.spec, [placed], foundation.basis)
        lost = saturated(real, encodings)
        if lost:
            emit(Warned(message=f"Adapter {placed.name!r}: {lost:.2%} of its weights saturate the shared encodings."))
        linked.append(_write_one(out / SECTIONS, context, placed.name, real, encodings, groups))
    return linked


def effective_encodings(
    context: ContextBinary, own: Mapping[str, Mapping[str, Encoding]], groups: Sequence[Group]
) -> dict[str, Mapping[str, Encoding]]:
    """Return the encodings each adapter is quantized under: the context's, its group's, or its own."""
    if context.mode == "none":
        return dict.fromkeys(own, context.branch)
    used = dict(own)
    for group in groups:
        shared = shared_encodings(own[member] for member in group.members)
        used |= dict.fromkeys(group.members, shared)
    return used


def write_default(out: Path, context: ContextBinary, foundation: FoundationBinary) -> str:
    """Write the zero section, which brings back the base, and return its path."""
    (out / SECTIONS).mkdir(exist_ok=True)
    initial = foundation.with_slots(context.spec) | dict(context.branch)
    scope = encodings_scope(context.spec, context.mode) or frozenset(context.branch)
    part: SectionPart = "weights" if context.mode == "none" else "combined"
    encodings = {name: initial[name] for name in sorted(scope)}
    write_section(
        out / SECTIONS,
        context,
        DEFAULT_ADAPTER,
        part,
        encodings_id=encodings_id(encodings),
        weights=zero_lora(context.spec),
        encodings=encodings,
    )
    return f"{SECTIONS}/{section_file(DEFAULT_ADAPTER, part)}"


def _write_one(
    directory: Path,
    context: ContextBinary,
    name: str,
    real: Mapping[str, Array],
    encodings: Mapping[str, Encoding],
    groups: Sequence[Group],
) -> LinkedAdapter:
    integers = quantize_lora(context.spec, real, encodings)
    identity = encodings_id(encodings)
    files: dict[SectionPart, str] = {}
    for part in parts_of(name, groups, context.mode):
        path = write_section(
            directory, context, name, part, encodings_id=identity, weights=integers, encodings=encodings
        )
        files[part] = f"{SECTIONS}/{path.name}"
    group = next((group for group in groups if name in group.members), None)
    source = files.get("encodings") or files.get("combined") or ""
    if not source and group is not None:
        source = f"{SECTIONS}/{section_file(group.leader, 'encodings')}"
    return LinkedAdapter(
        name=name, files=files, encodings_file=source, encodings_id=identity, group=group.name if group else ""
    )
