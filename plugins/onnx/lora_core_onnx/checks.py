"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.errors import ModelError, Problem
from lora_core.layers import ModelSummary
from lora_core.models.architecture import Architecture
from lora_core.models.context import context_problems
from lora_core.models.decoders import context_limits, read_llama
from lora_core_onnx.quant import policy_problems

HEAD_MULTIPLE = 16
_BUILDER = "The ONNX model"


def problems(job: ExportJob) -> list[Problem]:
    """Return what the policy, the options or the model rule out."""
    found = policy_problems(job.policy)
    architecture, foreign = read_llama(job.model.summary, _BUILDER)
    found += foreign
    # Attention over all positions is exact up to the sliding window.
    trained, window = context_limits(job.model.summary)
    found += context_problems(job.options.max_context_len, "--max-context-len", trained=trained, window=window)
    if architecture is not None:
        found += _head_problems(architecture)
    found += job.options.how_to_round.problems(job.model, job.policy.assign(job.model.summary.layers))
    if job.options.lora == "none" and job.adapters:
        what = "--lora none makes a model of the base alone, and adapters were given"
        found.append(Problem(what=what, remedy="Leave it out."))
    return found


def architecture_of(summary: ModelSummary) -> Architecture:
    """Return the decoder that a base is; raises `ModelError` if it is none that this backend builds."""
    architecture, foreign = read_llama(summary, _BUILDER)
    if architecture is None:
        raise ModelError(foreign)
    return architecture


def _head_problems(architecture: Architecture) -> list[Problem]:
    # What GroupQueryAttention of onnxruntime 1.32.0 asks for when it rotates.
    if architecture.head_dim % HEAD_MULTIPLE == 0:
        return []
    width = architecture.head_dim
    what = f"ONNX Runtime takes heads whose width is a multiple of {HEAD_MULTIPLE}, and the model has {width}"
    return [Problem(what=what, remedy="Use another backend for this model.")]
