"""Whether the ONNX backend can work on this machine, found without importing ONNX Runtime."""

from __future__ import annotations

from lora_core.backend import Diagnosis
from lora_core.plugin.requirements import installed, missing
from lora_core_onnx.hooks import ONNX

_OPTIONAL = ("onnxruntime-genai",)


def diagnose() -> Diagnosis:
    """Return the versions that are installed and what is missing."""
    facts = {name: installed(name) or "not installed" for name in (*ONNX.requires, *_OPTIONAL)}
    return Diagnosis(problems=missing(ONNX), facts=facts)
