"""The backend: check, export, link, open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.adapters.adapter import Adapter
from lora_core.backend import Artifacts, Backend, Diagnosis, ExportJob
from lora_core.bundle.bundle import Artifact, Bundle, BundledAdapter, Method
from lora_core.errors import Problem, UnsupportedError
from lora_core.events import Emit, Noted, stage
from lora_core_qnn_sim.checks import job_problems
from lora_core_qnn_sim.options import AUTO, QnnSimOptions
from lora_core_qnn_sim.sharing import QnnSimSharing

if TYPE_CHECKING:
    from lora_core.runtime.session import Session
    from lora_core_qnn_sim.artifacts.context_binary import ContextBinary
    from lora_core_qnn_sim.artifacts.foundation import Foundation
    from lora_core_qnn_sim.encodings.grid import Encoding
    from lora_core_qnn_sim.grouping import Group
    from lora_core_qnn_sim.linking import LinkedAdapter


class QnnSimBackend(Backend):
    """Quantized static graphs, sections per adapter, and a CPU runtime that enforces the order rules."""

    def diagnose(self) -> Diagnosis:
        """Say that the simulator works anywhere numpy does."""
        return Diagnosis(facts={"runtime": "simulator (numpy, exact integer sums)", "numpy": version("numpy")})

    def check(self, job: ExportJob) -> Sequence[Problem]:
        """Return every problem of `job`."""
        return job_problems(job)

    @property
    def sharing(self) -> QnnSimSharing:
        """How the base is stored once: one foundation for both graphs and all sections."""
        return QnnSimSharing()

    def export(self, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
        """Write foundation, context binary, zero section and the sections of every adapter."""
        from lora_core_qnn_sim import exporting, linking
        from lora_core_qnn_sim.supplied import supplied_adapters

        options: QnnSimOptions = job.options
        foundation = exporting.build_foundation(job, out, emit)
        single = _single_spec(job, foundation)
        supplied = supplied_adapters(
            options, single, options.quant_updatable, foundation.with_slots(single)  # type: ignore[arg-type]
        )  # fmt: skip
        context = exporting.build_context(job, foundation, out, emit, supplied)
        linked: list[LinkedAdapter] = []
        detail: dict[str, Any] = {"hot_switch": list(context.adapters), "mode": context.mode}
        default = ""
        if context.spec.slots and not context.hot_switch:
            default = linking.write_default(out, context, foundation)
            own = linking.calibrated(context, foundation, job.adapters, emit, supplied)
            groups = _groups(options, context, foundation, job.adapters, own, emit)
            with stage(emit, "write sections"):
                linked = linking.write_adapters(out, context, foundation, job.adapters, own, groups, emit)
            detail["groups"] = {group.name: list(group.members) for group in groups}
            if options.emit_qairt is not None:
                from lora_core_qnn_sim.handover.writer import write_handover
                from lora_core_qnn_sim.lora import real_lora

                used = linking.effective_encodings(context, own, groups)
                by_name = {adapter.name: adapter for adapter in job.adapters}
                write_handover(
                    options.emit_qairt, context, foundation, used,
                    lambda name: real_lora(context.spec, [by_name[name]], foundation.basis), groups,
                )  # fmt: skip
        return Artifacts(
            foundation=foundation.digest,
            artifacts=(
                _artifact(exporting.FOUNDATION, "foundation"),
                _artifact(exporting.CONTEXT, "program"),
                *([_artifact(default, "adapter-data")] if default else []),
                *_section_artifacts(linked),
            ),
            adapters=_bundled(job.adapters, linked, foundation.digest),
            methods=(Method(name="forward", program=exporting.CONTEXT), *_methods(job.adapters)),
            versions={"lora-core-qnn-sim": version("lora-core-qnn-sim"), "numpy": version("numpy")},
            detail=detail | {"default": default},
        )

    def link(self, bundle: Bundle, adapters: Sequence[Adapter], out: Path, emit: Emit) -> Artifacts:
        """Write the sections of `adapters`, calibrated on the stored base; context and foundation stay as they are."""
        from lora_core_qnn_sim import exporting, linking
        from lora_core_qnn_sim.artifacts.context_binary import read_context
        from lora_core_qnn_sim.artifacts.foundation import read_foundation

        context = read_context(bundle.file(exporting.CONTEXT))
        if context.hot_switch:
            raise UnsupportedError(
                "A hot-switch context holds all its adapters in one concurrency and takes no more",
                where=str(bundle.path), remedy="Export again with every adapter, or without --hot-switch.",
            )  # fmt: skip
        foundation = read_foundation(bundle.file(exporting.FOUNDATION))
        own = linking.calibrated(context, foundation, adapters, emit, {})
        with stage(emit, "write sections"):
            linked = linking.write_adapters(out, context, foundation, adapters, own, (), emit)
        return Artifacts(
            foundation=foundation.digest,
            artifacts=tuple(_section_artifacts(linked)),
            adapters=_bundled(adapters, linked, foundation.digest),
            methods=tuple(_methods(adapters)),
        )

    def links_independently(self, bundle: Bundle) -> bool:  # noqa: ARG002 - true of every bundle
        """Every adapter has section files of its own, and nothing else changes."""
        return True

    def open(self, bundle: Bundle, options: Mapping[str, Any]) -> Session:  # noqa: ARG002 - none are needed
        """Open `bundle` on the simulated runtime."""
        from lora_core_qnn_sim.session import QnnSimSession

        return QnnSimSession(bundle)


def _single_spec(job: ExportJob, foundation: Foundation) -> Any:
    import attrs

    from lora_core_qnn_sim.lora import graph_slots

    return attrs.evolve(foundation.spec, slots=graph_slots(job.plans[0], foundation.basis) if job.plans else ())


def _groups(
    options: QnnSimOptions, context: ContextBinary, foundation: Foundation, adapters: Sequence[Adapter],
    own: Mapping[str, Mapping[str, Encoding]], emit: Emit,
) -> tuple[Group, ...]:  # fmt: skip
    from lora_core_qnn_sim.autogroup import auto_group
    from lora_core_qnn_sim.grouping import parse_groups, read_groups

    if options.group == (AUTO,) and adapters:
        with stage(emit, "group adapters"):
            found = auto_group(context, foundation, adapters, own, options.max_sqnr_drop)
        for line in found.table().splitlines():
            emit(Noted(message=line))
        return found.groups
    if options.groups is not None:
        return read_groups(options.groups)
    return () if options.group == (AUTO,) else parse_groups(options.group)


def _artifact(path: str, role: str, adapter: str | None = None) -> Artifact:
    # The pipeline measures and hashes the file.
    return Artifact(path=path, role=role, sha256="", size=0, adapter=adapter)


def _section_artifacts(linked: Sequence[LinkedAdapter]) -> list[Artifact]:
    shared = {other.encodings_file for other in linked if not {"encodings", "combined"} & set(other.files)}
    # Encodings that other members need stay when their leader is removed.
    return [
        _artifact(path, "adapter-data", None if path in shared else each.name)
        for each in linked
        for path in each.files.values()
    ]


def _bundled(
    adapters: Sequence[Adapter], linked: Sequence[LinkedAdapter], foundation: str
) -> tuple[BundledAdapter, ...]:
    by_name = {each.name: each for each in linked}
    return tuple(
        BundledAdapter(
            name=adapter.name,
            digest=adapter.digest,
            foundation=foundation,
            rank=adapter.max_rank,
            modules=len(adapter.pairs),
            detail=_adapter_detail(by_name.get(adapter.name)),
        )
        for adapter in adapters
    )


def _adapter_detail(linked: LinkedAdapter | None) -> dict[str, Any]:
    if linked is None:
        return {}
    return {
        "sections": dict(linked.files),
        "encodings": linked.encodings_file,
        "encodings_id": linked.encodings_id,
        "group": linked.group,
    }


def _methods(adapters: Sequence[Adapter]) -> list[Method]:
    return [Method(name=adapter.name, program="context.bin", adapter=adapter.name) for adapter in adapters]
