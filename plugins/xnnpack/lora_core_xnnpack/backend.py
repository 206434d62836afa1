"""The XNNPACK backend: what it exports, links, opens and proves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import Values
from lora_core.backend import Artifacts, Backend, Diagnosis, ExportJob, RoundWeight
from lora_core.bundle.bundle import Bundle
from lora_core.errors import Problem
from lora_core.events import Emit, Estimated
from lora_core.sharing.blobs import WeightSharing
from lora_core_xnnpack.inputs import linking
from lora_core_xnnpack.inputs.linking import takes_adapters

if TYPE_CHECKING:
    from lora_core.runtime.session import Session
    from lora_core_xnnpack.session_options import XnnpackSessionOptions


class XnnpackBackend(Backend):
    """ExecuTorch programs for CPUs with one shared foundation file."""

    def diagnose(self) -> Diagnosis:
        """Look for the libraries without importing them."""
        from lora_core_xnnpack.diagnosis import diagnose

        return diagnose()

    def check(self, job: ExportJob) -> Sequence[Problem]:
        """Return what the policy, the options or the model rule out."""
        from lora_core_xnnpack.checks import problems

        return problems(job)

    def estimate(self, job: ExportJob) -> Estimated:
        """Return about how many bytes will be written."""
        from lora_core_xnnpack.estimating import estimate

        return estimate(job)

    def export(self, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
        """Lower the base once and one template for each plan, and link every adapter."""
        if job.options.inputs:
            from lora_core_xnnpack.inputs.exporting import export_with_inputs

            return export_with_inputs(job, out, emit)
        if job.options.layout == "multimethod":
            from lora_core_xnnpack.multimethod.exporting import export_multimethod

            return export_multimethod(job, out, emit)
        from lora_core_xnnpack.split.exporting import export_split

        return export_split(job, out, emit)

    @property
    def sharing(self) -> WeightSharing:
        """The foundation file, shared by all programs."""
        from lora_core_xnnpack.sharing import XnnpackSharing

        return XnnpackSharing()

    def links_independently(self, bundle: Bundle) -> bool:
        """Each adapter has files of its own in the split layout, and where it is an input of the one program; methods
        share it.
        """
        return takes_adapters(bundle) or not _in_one_program(bundle)

    def link(self, bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
        """Link `adapters` into the bundle's templates: neither base weights nor ExecuTorch are needed."""
        if takes_adapters(bundle):
            return linking.link(bundle, adapters, out, emit)
        if _in_one_program(bundle):
            from lora_core_xnnpack.multimethod.linking import link_into

            return link_into(bundle, adapters, out, emit)
        from lora_core_xnnpack.split.linking import SplitTarget, link_all

        return link_all(SplitTarget.of_bundle(bundle), adapters, out, emit)

    def unlink(self, bundle: Bundle, names: Sequence[str], out: Path, emit: Emit) -> Artifacts | None:
        """Write the one program of a multi-method bundle without the methods of `names`."""
        if takes_adapters(bundle) or not _in_one_program(bundle):
            return None
        from lora_core_xnnpack.multimethod.linking import unlink_from

        return unlink_from(bundle, names, out, emit)

    def template_files(self, bundle: Bundle, plan: int) -> Sequence[str]:
        """Return the template program and relocation table of one plan; in one program they are those of all, or the
        program itself where adapters are its inputs.
        """
        if takes_adapters(bundle):
            return (linking.PROGRAM_FILE,)
        if _in_one_program(bundle):
            return super().template_files(bundle, plan)
        from lora_core_xnnpack.split.linking import template_files

        return template_files(plan)

    def stored_values(self, bundle: Bundle, name: str) -> Mapping[str, Values]:
        """Read the tensors that the adapter's keys name, from wherever each is stored."""
        if takes_adapters(bundle):
            return linking.slots_in(bundle, name)
        from lora_core_xnnpack.stored_values import stored_values

        return stored_values(bundle, name, in_one_program=_in_one_program(bundle))

    def rounding(self, job: ExportJob, work: Path, emit: Emit) -> RoundWeight:
        """Return what quantization makes of a linear layer's weight."""
        from lora_core_xnnpack.rounding import rounding

        return rounding(job, work, emit)

    def open(self, bundle: Bundle, options: XnnpackSessionOptions) -> Session:
        """Open the bundle on ExecuTorch's runtime."""
        from lora_core_xnnpack.session import XnnpackSession

        return XnnpackSession(bundle, options)


def _in_one_program(bundle: Bundle) -> bool:
    # Bundles that were made before there were two layouts do not say.
    return bool(bundle.manifest.options.get("layout") == "multimethod")
