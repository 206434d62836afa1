"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from lora_core.adapters.adapter import LOW_RANK
from lora_core.adapters.slots.kinds import kind_of
from lora_core.backend import ExportJob
from lora_core.errors import Problem
from lora_core.models.context import context_problems
from lora_core.models.decoders import read_llama
from lora_core_xnnpack.options import SHORTEST_CALL, XnnpackOptions
from lora_core_xnnpack.quant import unsupported


def problems(job: ExportJob) -> list[Problem]:
    """Return what the policy, the options or the model rule out."""
    found = unsupported(job.policy)
    options: XnnpackOptions = job.options
    trained = job.model.summary.context_len
    found += context_problems(options.max_context_len, "--max-context-len", trained=trained)
    if options.seq_len(trained) > options.context_len(trained):
        found.append(
            Problem(
                what=f"--max-seq-len {options.max_seq_len} is more than a context of {options.context_len(trained)}; "
                "one call cannot be longer than the KV cache",
                remedy="Lower it, or raise --max-context-len.",
            )
        )
    elif options.seq_len(trained) < SHORTEST_CALL and job.model.summary.family != "module":
        option = "--max-context-len" if options.max_seq_len is None else "--max-seq-len"
        what = f"{option} {options.seq_len(trained)} is too short: a call takes up to {SHORTEST_CALL} tokens or more"
        found.append(Problem(what=what, remedy=f"Give at least {SHORTEST_CALL}.", where=option))
    found += job.model.problems(options.of_source(trained))
    found += _cache(job)
    if options.inputs:
        found += _inputs(job)
    elif options.layout == "multimethod" and options.adapter_data != "embedded":
        found.append(
            Problem(
                what=f"--layout multimethod with --adapter-data {options.adapter_data} could not be loaded: a program "
                "takes one data file, and that is the foundation",
                remedy="Leave --adapter-data out, or choose embedded.",
            )
        )
    assignment = job.policy.assign(job.model.summary.layers)
    found += options.how_to_round.problems(job.model, assignment)
    return [*found, *_adapters(job)]


def _cache(job: ExportJob) -> Iterator[Problem]:
    """Yield what rules out the type of the KV cache."""
    kind, summary = job.options.kv_cache, job.model.summary
    if kind == "fp32":
        return
    architecture, problems = read_llama(summary, f"A KV cache in {kind}")
    yield from (attrs.evolve(each, remedy="Leave --kv-cache out.", where="--kv-cache") for each in problems)
    window = None if architecture is None else architecture.window
    if window is not None and window < job.options.context_len(summary.context_len):
        yield Problem(
            what=f"A KV cache in {kind} is read by attention to the whole context, and that of {summary.family} ends "
            f"after {window} tokens",
            remedy=f"Leave --kv-cache out, or give --max-context-len {window} or less.",
            where="--kv-cache",
        )


def _inputs(job: ExportJob) -> Iterator[Problem]:
    """Yield what `--lora inputs` rules out."""
    options: XnnpackOptions = job.options
    kinds = {slot.kind for plan in job.plans for slot in plan.slots} - {LOW_RANK}
    for kind in sorted(kinds):
        what = f"--lora inputs takes the matrices A and B of LoRA, not {kind_of(kind).feature}"
        yield Problem(what=what, remedy="Leave the option out: as constants a program carries them.", where="--lora")
    if options.layout != "multimethod":
        what = (
            f"--lora inputs and --layout {options.layout} contradict each other: there is one program for all adapters"
        )
        yield Problem(what=what, remedy="Leave one of them out.", where="--layout")
    if options.adapter_data != "external":
        what = "--lora inputs and --adapter-data embedded contradict each other: an adapter is a data file"
        yield Problem(what=what, remedy="Leave one of them out.", where="--adapter-data")
    if job.policy.lora is not None:
        what = "--lora inputs takes matrices in float32, not in another type"
        yield Problem(what=what, remedy="Leave --adapter-dtype or --lora out.", where="--adapter-dtype")


def _adapters(job: ExportJob) -> Iterator[Problem]:
    """Yield what rules out where adapters are to be stored."""
    slots = (slot for plan in job.plans for slot in plan.slots)
    named = {kind_of(slot.kind).feature for slot in slots if any(part.table for part in slot.parts)}
    if named and job.options.layout == "multimethod" and not job.options.inputs:
        yield Problem(
            what=f"An adapter has {' and '.join(sorted(named))}, and one program for all adapters cannot carry that: "
            "kernels find rows of an embedding at a place in the program, which is the same for all of its methods",
            remedy="Use --layout split.",
        )
