"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.errors import Problem
from lora_core.models.context import context_problems
from lora_core_xnnpack.quant import unsupported


def problems(job: ExportJob) -> list[Problem]:
    """Return what the policy, the options or the model rule out."""
    found = unsupported(job.policy)
    options, trained = job.options, job.model.summary.context_len
    found += context_problems(options.max_context_len, "--max-context-len", trained=trained)
    if options.seq_len(trained) > options.context_len(trained):
        found.append(
            Problem(
                what=f"--max-seq-len {options.max_seq_len} is more than a context of {options.context_len(trained)}; "
                "one call cannot be longer than the KV cache",
                remedy="Lower it, or raise --max-context-len.",
            )
        )
    if options.layout == "multimethod" and options.adapter_data != "embedded":
        found.append(
            Problem(
                what=f"--layout multimethod with --adapter-data {options.adapter_data} could not be loaded: a program "
                "takes one data file, and that is the foundation",
                remedy="Leave --adapter-data out, or choose embedded.",
            )
        )
    assignment = job.policy.assign(job.model.summary.layers)
    found += options.how_to_round.problems(job.model, assignment)
    return found
