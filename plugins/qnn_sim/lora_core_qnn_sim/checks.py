"""Everything that can be wrong with a job, found before any heavy work."""

from __future__ import annotations

from lora_core.backend import ExportJob
from lora_core.errors import LoraCoreError, Problem
from lora_core.models.context import context_problems
from lora_core.models.decoders import context_limits
from lora_core_qnn_sim.graph.base_model import dims_of, family_problems
from lora_core_qnn_sim.grouping import group_problems, parse_groups, read_groups
from lora_core_qnn_sim.handover.documents import dialog_problems
from lora_core_qnn_sim.options import AUTO, QnnSimOptions
from lora_core_qnn_sim.quant import POLICIES, policy_problems, widths
from lora_core_qnn_sim.runtime.kernels import ALPHA_LIMIT, EXACT
from lora_core_qnn_sim.supplied import BASE, parse_files


def job_problems(job: ExportJob) -> list[Problem]:
    """Return every problem of `job`."""
    problems = family_problems(job.model.summary) + policy_problems(job.policy)
    if len(job.plans) > 1:
        what = "The simulator has one max-rank graph for all adapters, not one for each shape"
        problems.append(Problem(what=what, remedy="Use the union plan."))
    if not problems:
        problems += _width_problems(job) + _base_problems(job)
    problems += _length_problems(job)
    problems += _group_problems(job)
    problems += _option_problems(job)
    return problems


def _width_problems(job: ExportJob) -> list[Problem]:
    bits, copies = widths(job.policy, job.options), len(job.adapters) if job.options.hot_switch else 1
    rank = max((slot.rank for plan in job.plans for slot in plan.slots), default=0) * max(copies, 1)
    # The largest sum a LoRA branch can reach: activation x strength x weight, over all ranks.
    reach = (1 << bits.activations) * int(ALPHA_LIMIT * (1 << 14)) * (1 << (bits.lora - 1)) * rank
    if reach <= EXACT:
        return []
    what = f"A total rank of {rank} at {bits.lora} bits overflows exact sums"
    return [Problem(what=what, remedy="Use --lora-bits 8, or fewer adapters in one concurrency.")]


def _base_problems(job: ExportJob) -> list[Problem]:
    """Return which options do not fit the base."""
    options: QnnSimOptions = job.options
    problems = [] if options.emit_qairt is None else dialog_problems(job.model.summary)
    if options.rotate and not dims_of(job.model.summary).rotatable:
        what = f"The stream of {job.model.summary.family} cannot be rotated: norms after layers keep their gains"
        problems.append(Problem(what=what, remedy="Leave --rotate out.", where="--rotate"))
    return problems


def _length_problems(job: ExportJob) -> list[Problem]:
    options: QnnSimOptions = job.options
    problems = []
    # A static graph attends to all it holds, which is exact up to the sliding window.
    trained, window = context_limits(job.model.summary)
    positions = options.positions(trained, window)
    if options.input_len > positions:
        what = f"--input-len {options.input_len} is more than a context of {positions} tokens"
        problems.append(Problem(what=what, remedy=f"Give at most {positions}.", where="--input-len"))
    return problems + context_problems(options.context_len, "--context-len", trained=trained, window=window)


def _group_problems(job: ExportJob) -> list[Problem]:
    options: QnnSimOptions = job.options
    asked = [option for option, given in (("--group", options.group), ("--groups", options.groups)) if given]
    problems = []
    if len(asked) == 2:
        problems.append(Problem(what="Groups are given twice, by --group and by --groups", remedy="Give one of them."))
    if asked and options.hot_switch:
        what = "Hot switch keeps all adapters in one concurrency, so there is nothing to group"
        problems.append(Problem(what=what, remedy="Leave --hot-switch out, or the groups."))
    if AUTO in options.group:
        if len(options.group) > 1:
            problems.append(Problem(what="--group auto finds all groups; others cannot be given beside it"))
        if options.quant_updatable == "none":
            problems += [Problem(what="In mode 'none' all adapters share one set of encodings: there are no groups")]
        return problems
    try:
        groups = parse_groups(options.group) + (read_groups(options.groups) if options.groups else ())
    except LoraCoreError as error:
        return [*problems, *error.problems]
    names = [adapter.name for adapter in job.adapters]
    return problems + group_problems(groups, names, options.quant_updatable)


def _option_problems(job: ExportJob) -> list[Problem]:
    options: QnnSimOptions = job.options
    files, problems = parse_files(options.encodings)
    known = {adapter.name for adapter in job.adapters} | {BASE}
    problems += [
        Problem(what=f"Encodings are given for {name!r}, which is no adapter of this export and not {BASE!r}")
        for name in files
        if name not in known
    ]
    known_policies = {policy.name: policy for policy in POLICIES}
    asked_bits = job.policy.lora.bits if job.policy.lora is not None else 0
    if options.lora_bits and job.policy != known_policies.get(job.policy.name) and asked_bits != options.lora_bits:
        what = f"--adapter-dtype int{asked_bits} and --lora-bits {options.lora_bits} contradict each other"
        problems.append(Problem(what=what, remedy="Leave one of them out."))
    for option, asked, word in (
        ("--rotate", options.rotate, "rotated"),
        ("--split-outliers", options.split_outliers, "wider"),
    ):
        if asked and (options.encodings or options.emit_qairt):
            what = f"Encodings and the vendor's tools know the base as it is, not a {word} one"
            problems.append(Problem(what=what, remedy=f"Leave {option} out."))
    if options.hot_switch and not job.adapters:
        problems.append(Problem(what="Hot switch needs the adapters that the concurrency is made of"))
    if options.hot_switch and options.emit_qairt:
        what = "A hot-switch concurrency has no sections to hand over"
        problems.append(Problem(what=what, remedy="Leave --hot-switch or --emit-qairt out."))
    return problems
