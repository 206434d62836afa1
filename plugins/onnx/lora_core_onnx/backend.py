"""The ONNX backend: what it exports, links, opens and proves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import Values
from lora_core.backend import Artifacts, Backend, Diagnosis, ExportJob, RoundWeight
from lora_core.bundle.bundle import Bundle
from lora_core.errors import Problem
from lora_core.events import Emit
from lora_core.sharing.blobs import WeightSharing
from lora_core_onnx.names import MODEL

if TYPE_CHECKING:
    from lora_core.runtime.session import Session
    from lora_core_onnx.session_options import OnnxSessionOptions


class OnnxBackend(Backend):
    """One model for the base and every adapter, whose A and B are its inputs."""

    def diagnose(self) -> Diagnosis:
        """Look for the libraries without importing them."""
        from lora_core_onnx.diagnosis import diagnose

        return diagnose()

    def check(self, job: ExportJob) -> Sequence[Problem]:
        """Return what the policy, the options or the model rule out."""
        from lora_core_onnx.checks import problems

        return problems(job)

    def export(self, job: ExportJob, out: Path, emit: Emit) -> Artifacts:
        """Write the base piece by piece, the model that reads it, and every adapter."""
        from lora_core_onnx.exporting import export

        return export(job, out, emit)

    @property
    def sharing(self) -> WeightSharing:
        """The weights file, which the one model reads."""
        from lora_core_onnx.sharing import OnnxSharing

        return OnnxSharing()

    def link(self, bundle: Bundle, adapters: Sequence[PlacedAdapter], out: Path, emit: Emit) -> Artifacts:
        """Write a file for each adapter: neither base weights nor torch are needed."""
        from lora_core_onnx.linking import link

        return link(bundle, adapters, out, emit)

    def links_independently(self, bundle: Bundle) -> bool:  # noqa: ARG002 - true of every bundle
        """Every adapter has a file of its own, and nothing else changes."""
        return True

    def template_files(self, bundle: Bundle, plan: int) -> Sequence[str]:  # noqa: ARG002 - there is one model
        """Return the model, whose inputs adapters are."""
        return (MODEL,)

    def stored_values(self, bundle: Bundle, name: str) -> Mapping[str, Values]:
        """Read the adapter's file, which holds A and B in float32."""
        from lora_core_onnx.stored_values import stored_values

        return stored_values(bundle, name)

    def rounding(self, job: ExportJob, work: Path, emit: Emit) -> RoundWeight:
        """Return what quantization makes of a linear layer's weight."""
        from lora_core_onnx.rounding import rounding

        return rounding(job, work, emit)

    def open(self, bundle: Bundle, options: OnnxSessionOptions) -> Session:
        """Open the bundle on ONNX Runtime."""
        from lora_core_onnx.session import OnnxSession

        return OnnxSession(bundle, options)
