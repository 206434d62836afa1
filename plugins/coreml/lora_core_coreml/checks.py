"""What is wrong with a job, said before any heavy work, all of it at once."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.adapters.adapter import Adapter
from lora_core.backend import ExportJob
from lora_core.bundle.bundle import Bundle
from lora_core.errors import Problem
from lora_core_coreml import quant
from lora_core_coreml.options import CoremlOptions
from lora_core_coreml.program import metadata
from lora_core_coreml.program.naming import kinds, method_name, name_problems

# Constant methods of every program; ExecuTorch keeps them in one namespace with the methods that run.
CONSTANT_METHODS = frozenset(
    {
        metadata.ADAPTERS,
        metadata.ADAPTER_METHODS,
        "vocab_size",
        "head_dim",
        "n_heads_per_cache",
        "max_context_len",
        "freqs_cos",
        "freqs_sin",
        *(
            f"{prefix}{name}"
            for prefix in ("", "decode_", "prefill_", "forward_")
            for name in (
                "input_len",
                "freqs_cos_input_index",
                "freqs_sin_input_index",
                "mask_specs",
                "kv_cache_specs",
                "last_valid_token_pos_index",
            )
        ),
    }
)


def problems(job: ExportJob) -> list[Problem]:
    """Return every problem of options, policy, context length and adapter names."""
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
    names = [adapter.name for adapter in job.adapters]
    return found + name_problems(names, options.multifunction, CONSTANT_METHODS)


def names(bundle: Bundle, adapters: Sequence[Adapter], options: CoremlOptions) -> list[Problem]:
    """Return what is wrong with the names of adapters that are added to `bundle`."""
    new = [adapter.name for adapter in adapters]
    existing = {
        method_name(adapter.name, kind, options.multifunction)
        for adapter in bundle.manifest.adapters
        if adapter.name not in new
        for kind in kinds(options.multifunction)
    }
    return name_problems(new, options.multifunction, CONSTANT_METHODS | existing)
