"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.errors import Problem
from lora_core_coreml import quant
from lora_core_coreml.options import CoremlOptions


def problems(job: ExportJob) -> list[Problem]:
    """Return every problem of options, policy and context length. Names of adapters are checked before, by core."""
    options: CoremlOptions = job.options
    found = options.problems()
    found += quant.policy_problems(job.policy)
    context = job.model.summary.context_len
    if context is not None and options.context_len(context) > context:
        what = f"--max-context-len {options.max_context_len} is longer than the {context} tokens of the base"
        found.append(Problem(what=what, remedy=f"Give at most {context}.", where="--max-context-len"))
    if job.model.summary.family == "module" and options.multifunction:
        what = "--multifunction needs a language model with static attention; this base is a module of its own"
        found.append(
            Problem(what=what, remedy="Leave it out: the module's one method is forward.", where="--multifunction")
        )
    assignment = job.policy.assign(job.model.summary.layers)
    return found + options.how_to_round.problems(job.model, assignment)
