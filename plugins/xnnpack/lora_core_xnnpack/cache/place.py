"""Where lowered programs are kept: what they depend on beside their weights."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.models.base import BaseModel
from lora_core.template_cache.identity import template_identity
from lora_core.template_cache.kept import KeptTemplates

_CONTENT = 7
"""Goes up with what is kept of a program, and with the graph that is lowered."""
_DISTRIBUTIONS = ("lora-core", "lora-core-xnnpack", "executorch", "torch", "torchao", "numpy", "flatbuffers")


def place(job: ExportJob, base: BaseModel, plans: Sequence[SlotPlan]) -> KeptTemplates | None:
    """Return where the programs of `job` that have the slots of `plans` are kept, None without a cache or for a module
    whose code no name can tell.

    The weights of `base` need not be there.
    """
    if job.cache is None:
        return None
    lowered = {
        "content": _CONTENT,
        "paths": base.paths,
        "tensors": {name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in base.module.state_dict().items()},
        "metadata": base.metadata,
    }
    alone = attrs.evolve(job, adapters=(), plans=tuple(plans))
    identity = template_identity(alone, lowered, _DISTRIBUTIONS, after=("adapter_data", "rounding", "calibration"))
    return None if identity is None else KeptTemplates(directory=job.cache / identity)
