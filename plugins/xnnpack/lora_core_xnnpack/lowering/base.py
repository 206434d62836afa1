"""The base as every export to XNNPACK begins with it: made lean; held whole here, `streaming` does without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_core.backend import ExportJob
from lora_core.errors import UnsupportedError
from lora_core.events import Emit, Warned, stage
from lora_core.models.base import BaseModel
from lora_core.models.executorch.options import ExecutorchOptions
from lora_core.preparation.rounded import RoundedLayers
from lora_core.quant.policy import Assignment
from lora_core.quant.undivided import describe_undivided
from lora_core.temporary import temporary_directory
from lora_core_xnnpack.options import XnnpackOptions
from lora_core_xnnpack.quant import quantize, rounded_weight

if TYPE_CHECKING:
    from lora_core.models.outline import Outline


def outlined(job: ExportJob) -> Outline | None:
    """Return the base of `job` without its weights, made lean; None if its source can only give it whole."""
    asked = _asked(job)
    outline = job.model.outline(asked)
    if outline is not None:
        _make_lean(outline.base, asked)
    return outline


def load_base(job: ExportJob, emit: Emit) -> BaseModel:
    """Load the base once, make it lean and quantize it as the policy decides."""
    with stage(emit, "Load the base model"):
        asked = _asked(job)
        base = job.model.load(asked)
        _make_lean(base, asked)
    assignment = job.policy.assign(base.summary.layers)
    if any(assignment.schemes.values()):
        with stage(emit, f"Quantize the base ({job.policy.name})"):
            quantize(base, assignment, scale_search=job.options.scale_search)
    with (
        temporary_directory() as work,
        job.options.how_to_round.layers(job.model, assignment, work, emit) as layers,
    ):
        if layers is not None:
            _put_rounded(base, assignment, layers)
    return base


def _put_rounded(base: BaseModel, assignment: Assignment, layers: RoundedLayers) -> None:
    import torch

    for name in layers.names:
        scheme = assignment.schemes[name]
        assert scheme is not None, "what is rounded is quantized"
        weight = rounded_weight(*layers.rows(name, 0), scheme)
        base.module.get_submodule(base.paths[name]).weight = torch.nn.Parameter(weight, requires_grad=False)


def warn_of_undivided(job: ExportJob, emit: Emit) -> None:
    """Warn of layers that the policy leaves out because its group size does not divide them."""
    for message in describe_undivided(job.policy, job.policy.assign(job.model.summary.layers)):
        emit(Warned(message=message))


def _asked(job: ExportJob) -> ExecutorchOptions:
    options: XnnpackOptions = job.options
    return options.of_source(job.model.summary.context_len)


def _make_lean(base: BaseModel, asked: ExecutorchOptions) -> None:
    """Make the decoder lean if it is called as the core's own are; what callers bring is lowered as it is.

    Raises `UnsupportedError` for a KV cache in another type than float32 in a decoder that stays as it is.
    """
    from lora_core_xnnpack.lowering.lean import LeanDecoder, lean

    if base.summary.family != "module" and _takes_one_sequence(base):
        base.module = lean(base.module)
    if asked.cache_type != "fp32" and type(base.module) is not LeanDecoder:
        raise UnsupportedError(
            f"The decoder of {base.summary.name} has a KV cache of its own, which cannot be {asked.cache_type}.",
            remedy="Leave --kv-cache out.",
        )


def _takes_one_sequence(base: BaseModel) -> bool:
    """Say whether the inputs are tokens (1, length) and the position of the first of them."""
    if base.example_kwargs or len(base.example_args) != 2:
        return False
    tokens, options = base.example_args
    return isinstance(options, dict) and tokens.shape[0] == 1 and options.keys() == {"input_pos"}
