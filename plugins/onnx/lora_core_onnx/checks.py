"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.errors import ModelError, Problem
from lora_core.layers import ModelSummary
from lora_core.models import families
from lora_core.models.architecture import Architecture, read_architecture
from lora_core_onnx.quant import policy_problems

HEAD_MULTIPLE = 16
_FAMILIES = {family.name: family for family in families.FAMILIES}


def problems(job: ExportJob) -> list[Problem]:
    """Return what the policy, the options or the model rule out."""
    found = policy_problems(job.policy)
    architecture, foreign = _read(job.model.summary)
    found += foreign
    if architecture is not None:
        found += _length_problems(job.options.max_context_len, architecture)
        found += _head_problems(architecture)
    if job.options.lora == "none" and job.adapters:
        what = "--lora none makes a model of the base alone, and adapters were given"
        found.append(Problem(what=what, remedy="Leave it out."))
    return found


def architecture_of(summary: ModelSummary) -> Architecture:
    """Return the decoder that a base is; raises `ModelError` if it is none that this backend builds."""
    architecture, foreign = _read(summary)
    if architecture is None:
        raise ModelError(foreign)
    return architecture


def _read(summary: ModelSummary) -> tuple[Architecture | None, list[Problem]]:
    if summary.family not in _FAMILIES:
        what = f"ONNX models are built for decoders as Llama is one, not for {summary.family!r}"
        return None, [Problem(what=what, remedy="Use another backend for this model.")]
    architecture, foreign = read_architecture(summary.config, _FAMILIES[summary.family], summary.name)
    if architecture is None or not architecture.beyond_llama:
        return architecture, foreign
    what = f"The ONNX model has no {', no '.join(architecture.beyond_llama)}, which {summary.family} needs"
    return None, [Problem(what=what, remedy="Use another backend for this model.")]


def _head_problems(architecture: Architecture) -> list[Problem]:
    # What GroupQueryAttention of onnxruntime 1.32.0 asks for when it rotates.
    if architecture.head_dim % HEAD_MULTIPLE == 0:
        return []
    width = architecture.head_dim
    what = f"ONNX Runtime takes heads whose width is a multiple of {HEAD_MULTIPLE}, and the model has {width}"
    return [Problem(what=what, remedy="Use another backend for this model.")]


def _length_problems(asked: int, architecture: Architecture) -> list[Problem]:
    # Attention over all positions is exact up to the sliding window.
    limit = min(architecture.context_len, architecture.window or architecture.context_len)
    if asked <= limit:
        return []
    what = f"--max-context-len {asked} is more than the model's {limit}"
    return [Problem(what=what, remedy=f"Ask for at most {limit}.")]
