"""The backend: check, export, link, open."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.backend import Artifacts, Backend, Diagnosis, ExportJob
from lora_core.bundle.bundle import Bundle
from lora_core.errors import Problem
from lora_core.events import Emit
from lora_core_qnn_sim.sharing import QnnSimSharing

if TYPE_CHECKING:
    from lora_core.runtime.session import Session


class QnnSimBackend(Backend):
    """Quantized static graphs, sections per adapter, and a CPU runtime that enforces the order rules."""

    def diagnose(self) -> Diagnosis:
        """Say that the simulator works anywhere numpy does."""
        from lora_core_qnn_sim.vendor.libraries import NOT_INSTALLED, VendorLibraries

        vendor = VendorLibraries.find()
        facts = {
            "runtime": "simulator (numpy, exact integer sums)",
            "numpy": version("numpy"),
            "vendor's libraries, for `qairt --check`": vendor.name if vendor else NOT_INSTALLED,
        }
        return Diagnosis(facts=facts)

    def check(self, job: ExportJob) -> Sequence[Problem]:
        """Return every problem of `job`."""
        from lora_core_qnn_sim.checks import job_problems

        return job_problems(job)

    @property
    def sharing(self) -> QnnSimSharing:
        """How the base is stored once: one foundation for both graphs and all sections."""
        return QnnSimSharing()

    def export(self, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
        """Write foundation, context binary, zero section and the sections of every adapter."""
        from lora_core_qnn_sim.exporting import export

        return export(job, out, emit)

    def link(self, bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
        """Write the sections of `adapters`, calibrated on the stored base; context and foundation stay as they are."""
        from lora_core_qnn_sim.linking import link

        return link(bundle, adapters, out, emit)

    def unlink(self, bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts | None:  # noqa: ARG002 - nothing is written
        """Let go of encodings that only adapters in `names` used: they belong to no single one of their group."""
        from lora_core_qnn_sim.linking import unneeded

        dropped = unneeded(bundle, frozenset(names))
        foundation = bundle.manifest.foundation
        return Artifacts(foundation=foundation, files=(), methods=(), dropped=dropped) if dropped else None

    def links_independently(self, bundle: Bundle) -> bool:  # noqa: ARG002 - true of every bundle
        """Every adapter has section files of its own, and nothing else changes."""
        return True

    def open(self, bundle: Bundle, options: Any) -> Session:  # noqa: ARG002 - there are none
        """Open `bundle` on the simulated runtime."""
        from lora_core_qnn_sim.session import QnnSimSession

        return QnnSimSession(bundle)
