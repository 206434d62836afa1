"""One export: foundation, context binary, zero section, the sections of every adapter, the vendor's files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts, ExportJob, WrittenFile
from lora_core.bundle.bundle import Method
from lora_core.events import Emit, Noted, stage
from lora_core_qnn_sim.artifacts import CONTEXT, FOUNDATION
from lora_core_qnn_sim.artifacts.context_binary import ContextBinary, read_context, write_context, zero_lora
from lora_core_qnn_sim.artifacts.foundation import FoundationBinary
from lora_core_qnn_sim.artifacts.initial import initial_branch
from lora_core_qnn_sim.autogroup import auto_group
from lora_core_qnn_sim.calibrate.calibrate import calibrate_adapter, shared_encodings
from lora_core_qnn_sim.encodings.grid import Encoding
from lora_core_qnn_sim.graph.spec import GraphSpec
from lora_core_qnn_sim.grouping import Group, parse_groups, read_groups
from lora_core_qnn_sim.handover.writer import write_handover
from lora_core_qnn_sim.linking import (
    LinkedAdapter,
    calibrated,
    details,
    effective_encodings,
    methods,
    section_files,
    write_adapters,
    write_default,
)
from lora_core_qnn_sim.lora import graph_slots, quantize_lora, real_lora
from lora_core_qnn_sim.options import AUTO, QnnSimOptions
from lora_core_qnn_sim.quantizing import build_foundation
from lora_core_qnn_sim.supplied import supplied_adapters

EncodingSets = Mapping[str, Mapping[str, Encoding]]


@attrs.frozen(kw_only=True)
class Sections:
    """What an export wrote beside foundation and context binary; nothing for a graph that takes no sections.

    `default` is the path of the zero section.
    """

    default: str = ""
    linked: tuple[LinkedAdapter, ...] = ()
    groups: tuple[Group, ...] | None = None

    @property
    def files(self) -> tuple[WrittenFile, ...]:
        """Every file."""
        zero = (WrittenFile(path=self.default, role="adapter-data"),) if self.default else ()
        return (*zero, *section_files(self.linked))

    @property
    def detail(self) -> dict[str, Any]:
        """What the manifest says of them."""
        groups = {} if self.groups is None else {group.name: list(group.members) for group in self.groups}
        return {"default": self.default} | ({} if self.groups is None else {"groups": groups})


def export(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Write all of `job` into `out`, and the vendor's files where the options say."""
    options: QnnSimOptions = job.options
    foundation = build_foundation(job, out, emit)
    single = _spec_for(job, foundation, copies=1)
    supplied = supplied_adapters(options, single, options.quant_updatable, foundation.with_slots(single))
    context = build_context(job, foundation, out, emit, supplied)
    sections = Sections()
    if context.spec.slots and not context.hot_switch:
        sections = _write_sections(job, context, foundation, out, emit, supplied)
    return Artifacts(
        foundation=foundation.digest,
        files=(
            WrittenFile(path=FOUNDATION, role="foundation"),
            WrittenFile(path=CONTEXT, role="program"),
            *sections.files,
        ),
        methods=(Method(name="forward", program=CONTEXT), *methods(job.adapters)),
        versions={"lora-core-qnn-sim": version("lora-core-qnn-sim"), "numpy": version("numpy")},
        detail={"hot_switch": list(context.adapters), "mode": context.mode} | sections.detail,
        adapter_details=details(sections.linked),
    )


def build_context(
    job: ExportJob, foundation: FoundationBinary, out: Path, emit: Emit, supplied: EncodingSets
) -> ContextBinary:
    """Write `context.bin` for the job's plan and mode and open it again."""
    options: QnnSimOptions = job.options
    hot = options.hot_switch and bool(job.adapters)
    single, spec = (_spec_for(job, foundation, copies=count) for count in (1, len(job.adapters) if hot else 1))
    branch, lora = initial_branch(spec), zero_lora(spec)
    if job.adapters and (hot or options.quant_updatable == "none"):
        with stage(emit, "calibrate shared encodings"):
            branch = _shared_branch(single, spec, foundation, job.adapters, supplied)
    if hot:
        lora = quantize_lora(spec, real_lora(spec, job.adapters, foundation.basis), branch)
    context = ContextBinary(
        spec=spec,
        mode="none" if hot else options.quant_updatable,
        foundation=foundation.digest,
        branch=branch,
        lora=lora,
        adapters=tuple(placed.name for placed in job.adapters) if hot else (),
    )
    write_context(out / CONTEXT, context)
    return read_context(out / CONTEXT)


def _spec_for(job: ExportJob, foundation: FoundationBinary, *, copies: int) -> GraphSpec:
    """Return the graph with the job's slots, for a concurrency of `copies` adapters."""
    plan = job.plans[0] if job.plans else SlotPlan(slots=())
    slots = graph_slots(plan, foundation.basis, copies=copies)
    return attrs.evolve(foundation.spec, slots=slots, alphas=copies)


def _shared_branch(
    single: GraphSpec,
    spec: GraphSpec,
    foundation: FoundationBinary,
    adapters: Sequence[PlacedAdapter],
    supplied: EncodingSets,
) -> dict[str, Encoding]:
    """Return branch encodings that cover every adapter, and in a hot-switch graph all of them at once."""
    sets = []
    for placed in adapters:
        weights = real_lora(single, [placed], foundation.basis)
        own = calibrate_adapter(single, foundation, weights, "none")
        sets.append(own | dict(supplied.get(placed.name, {})))
    if spec.alphas > 1:
        together = real_lora(spec, adapters, foundation.basis)
        sets.append(calibrate_adapter(spec, foundation, together, "none"))
    return shared_encodings(sets)


def _write_sections(
    job: ExportJob, context: ContextBinary, foundation: FoundationBinary, out: Path, emit: Emit, supplied: EncodingSets
) -> Sections:
    default = write_default(out, context, foundation)
    own = calibrated(context, foundation, job.adapters, emit, supplied)
    groups = _groups(job, context, foundation, own, emit)
    with stage(emit, "write sections"):
        linked = write_adapters(out, context, foundation, job.adapters, own, groups, emit)
    directory = job.options.emit_qairt
    if directory is not None:
        used = effective_encodings(context, own, groups)
        by_name = {placed.name: placed for placed in job.adapters}

        def weights(name: str) -> Mapping[str, Any]:
            return real_lora(context.spec, [by_name[name]], foundation.basis)

        write_handover(directory, context, foundation, used, weights, groups, job.model.summary)
    return Sections(default=default, linked=tuple(linked), groups=groups)


def _groups(
    job: ExportJob, context: ContextBinary, foundation: FoundationBinary, own: EncodingSets, emit: Emit
) -> tuple[Group, ...]:
    """Return the groups that the options ask for, or those that are found."""
    options: QnnSimOptions = job.options
    if options.group == (AUTO,) and job.adapters:
        with stage(emit, "group adapters"):
            found = auto_group(context, foundation, job.adapters, own, options.max_sqnr_drop)
        for line in found.table().splitlines():
            emit(Noted(message=line))
        return found.groups
    if options.groups is not None:
        return read_groups(options.groups)
    return () if options.group == (AUTO,) else parse_groups(options.group)
