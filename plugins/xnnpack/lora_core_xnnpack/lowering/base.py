"""The base as every export to XNNPACK begins with it: loaded once, quantized as the policy decides."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.events import Emit, Warned, stage
from lora_core.models.base import BaseModel
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.quant.undivided import describe_undivided
from lora_core_xnnpack.quant import quantize


def load_base(job: ExportJob, emit: Emit) -> BaseModel:
    """Load the base once and quantize it as the policy decides; layers left out are warned of."""
    options = job.options
    with stage(emit, "Load the base model"):
        asked = ExecutorchOptions(max_context_len=options.max_context_len, max_seq_len=options.max_seq_len)
        base = job.model.load(asked)
    assignment = job.policy.assign(base.summary.layers)
    for message in describe_undivided(job.policy, assignment):
        emit(Warned(message=message))
    if any(assignment.schemes.values()):
        with stage(emit, f"Quantize the base ({job.policy.name})"):
            quantize(base, assignment, scale_search=options.scale_search)
    return base
