"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from lora_core.adapters.adapter import LOW_RANK
from lora_core.adapters.slots.kinds import KINDS
from lora_core.backend import ExportJob
from lora_core.errors import Problem
from lora_core.models.context import context_problems
from lora_core.models.decoders import architecture_of, context_limits
from lora_core.quant.policy import Assignment
from lora_core_coreml import quant
from lora_core_coreml.options import CoremlOptions


def problems(job: ExportJob) -> list[Problem]:
    """Return every problem of options, policy and context length. Names of adapters are checked before, by core."""
    options: CoremlOptions = job.options
    found = options.problems()
    found += quant.policy_problems(job.policy)
    if job.policy.lora is not None and not options.float16:
        what = "--adapter-dtype fp16 and --dtype fp32 contradict each other: a program computes in one precision"
        found.append(Problem(what=what, where="--adapter-dtype", remedy="Leave one of them out."))
    trained, window = context_limits(job.model.summary)
    found += context_problems(options.max_context_len, "--max-context-len", trained=trained, window=window)
    context = options.context_len(trained, window)
    if options.max_context_len is None and context <= options.input_len:
        what = f"--input-len {options.input_len} leaves no cache in the base's context of {context} tokens"
        found.append(Problem(what=what, remedy="Give less.", where="--input-len"))
    found += job.model.problems(options.of_source(trained, window))
    architecture = architecture_of(job.model.summary)
    if architecture is not None and architecture.delta is not None:
        what = f"Static attention has no inputs and outputs for the state that layers of {architecture.family} keep"
        found.append(Problem(what=what, remedy="Use another backend for this model."))
    if job.model.summary.family == "module" and options.multifunction:
        what = "--multifunction needs a language model with static attention; this base is a module of its own"
        found.append(
            Problem(what=what, remedy="Leave it out: the module's one method is forward.", where="--multifunction")
        )
    assignment = job.policy.assign(job.model.summary.layers)
    found += _twice_stored(job, assignment)
    found += _inputs_problems(job)
    found += options.how_to_round.problems(job.model, assignment)
    return found


def _inputs_problems(job: ExportJob) -> list[Problem]:
    """Return what `--lora inputs` rules out: slots that are no matrices of LoRA."""
    if not job.options.inputs:
        return []
    kinds = {slot.kind for plan in job.plans for slot in plan.slots} - {LOW_RANK}
    return [
        Problem(
            what=f"--lora inputs takes the matrices A and B of LoRA, not {KINDS[kind].feature}",
            remedy="Leave the option out: as constants a program carries them.",
            where="--lora",
        )
        for kind in sorted(kinds)
    ]


def _twice_stored(job: ExportJob, assignment: Assignment) -> list[Problem]:
    """Return a problem if the program is cut between a tied head and its embedding, which is one matrix."""
    schemes = assignment.schemes
    tied = [layer for layer in job.model.summary.layers if layer.tied_to is not None]
    alike = [layer.name for layer in tied if schemes.get(layer.name) == schemes.get(str(layer.tied_to))]
    if not job.options.graph_breaks or not alike:
        return []
    what = (
        f"--graph-breaks puts {alike[0]} and the embedding that it is tied to into different CoreML packages, each of "
        "which holds its own weights, so the matrix would be stored twice"
    )
    remedy = "Leave it out, or quantize the two differently: --embedding 8,0 for a float one, --head 4,0 for 8 bits."
    return [Problem(what=what, remedy=remedy, where="--graph-breaks")]
