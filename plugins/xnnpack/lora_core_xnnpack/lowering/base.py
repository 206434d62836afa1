"""The base held whole: loaded once, quantized as the policy decides. `streaming` does without."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.events import Emit, Warned, stage
from lora_core.models.base import BaseModel
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.quant.undivided import describe_undivided
from lora_core_xnnpack.quant import quantize


def model_options(job: ExportJob) -> ExecutorchOptions:
    """Return what is asked of the source of the base."""
    return ExecutorchOptions(max_context_len=job.options.max_context_len, max_seq_len=job.options.max_seq_len)


def load_base(job: ExportJob, emit: Emit) -> BaseModel:
    """Load the base once and quantize it as the policy decides."""
    with stage(emit, "Load the base model"):
        base = job.model.load(model_options(job))
    assignment = job.policy.assign(base.summary.layers)
    if any(assignment.schemes.values()):
        with stage(emit, f"Quantize the base ({job.policy.name})"):
            quantize(base, assignment, scale_search=job.options.scale_search)
    return base


def warn_of_undivided(job: ExportJob, emit: Emit) -> None:
    """Warn of layers that the policy leaves out because its group size does not divide them."""
    for message in describe_undivided(job.policy, job.policy.assign(job.model.summary.layers)):
        emit(Warned(message=message))
