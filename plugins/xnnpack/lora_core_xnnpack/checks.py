"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.errors import Problem
from lora_core_xnnpack.quant import unsupported


def problems(job: ExportJob) -> list[Problem]:
    """Return what the policy, the options or the model rule out."""
    found = unsupported(job.policy)
    options = job.options
    if options.max_seq_len > options.max_context_len:
        found.append(
            Problem(
                what=f"--max-seq-len {options.max_seq_len} is more than --max-context-len {options.max_context_len}; "
                "one call cannot be longer than the KV cache",
                remedy="Lower the first or raise the second.",
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
