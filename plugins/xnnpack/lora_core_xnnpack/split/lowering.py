"""Lower the base and its templates, and hold them against the stored foundation."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import LoraCoreError
from lora_core.events import Emit, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.adapter_dtype import FP32
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.lowering.lowering import FOUNDATION_TAG, Lowered, lower
from lora_core_xnnpack.lowering.slots import attach, placeholders, stored_placeholders

if TYPE_CHECKING:
    import torch

    from lora_core_xnnpack.cache.origins import BaseTensor
    from lora_core_xnnpack.split.relocations import SplitTemplate


@attrs.frozen(kw_only=True)
class FoundationIndex:
    """The stored base: every key with the SHA-256 and the size of its bytes."""

    digests: Mapping[str, str]
    sizes: Mapping[str, int]

    @classmethod
    def read(cls, path: Path) -> FoundationIndex:
        """Read and hash the foundation file at `path`."""
        from lora_core_xnnpack.files.data_file import stored_blobs
        from lora_core_xnnpack.files.named_blobs import mapped

        data = memoryview(mapped(path))
        blobs = stored_blobs(data, path)
        return cls(
            digests={blob.key: _sha256(data[blob.offset : blob.offset + blob.size]) for blob in blobs},
            sizes={blob.key: blob.size for blob in blobs},
        )

    @classmethod
    def of(cls, tensors: Sequence[BaseTensor], module: torch.nn.Module) -> FoundationIndex:
        """Return what a foundation of `tensors` holds for the weights in `module`, in that order."""
        from lora_core_xnnpack.cache.forms import named_tensors, stored

        weights = dict(named_tensors(module))
        digests: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for tensor in tensors:
            digest = _sha256(memoryview(stored(weights[tensor.form.path], tensor.form)))
            key = tensor.name or tensor.prefix + digest
            digests[key], sizes[key] = digest, tensor.size
        return cls(digests=digests, sizes=sizes)


def lower_all(
    base: BaseModel, plans: Sequence[SlotPlan], out: Path, emit: Emit, *, dtype: str = FP32
) -> tuple[list[SplitTemplate], dict[str, dict[str, int]]]:
    """Lower the base and a template for each plan, whose slots are of type `dtype`, and write the foundation file into
    `out`.

    Returns the programs, the base's first, and the bytes of memory that each plans, by method.
    """
    from lora_core_xnnpack.split.templating import make_template

    with stage(emit, "Lower the base program"):
        lowered = lower({"forward": base.module}, base)
    with stage(emit, "Write the foundation"):
        lowered.manager.write_tensor_data_to_file(str(out))
        foundation = FoundationIndex.read(out / FOUNDATION_FILE)
    program, memory = make_template(lowered, {}, {}), _planned_memory(lowered)
    del lowered  # it holds a copy of the foundation, and graphs are cyclic
    gc.collect()
    templates, planned = lower_templates(base, plans, foundation, emit, dtype=dtype)
    return [program, *templates], {"base": memory, **planned}


def lower_templates(
    base: BaseModel, plans: Sequence[SlotPlan], foundation: FoundationIndex, emit: Emit, *, dtype: str = FP32
) -> tuple[list[SplitTemplate], dict[str, dict[str, int]]]:
    """Lower a template for each plan, whose slots are of type `dtype`; `foundation` is that of the base.

    Returns the templates and the bytes of memory that each plans, by method.
    """
    templates = []
    planned: dict[str, dict[str, int]] = {}
    for index, plan in enumerate(plans):
        name = "template" if len(plans) == 1 else f"template {index + 1} of {len(plans)}"
        with stage(emit, f"Lower the {name}"):
            template, planned[f"template/{index}"] = _lower_template(base, plan, foundation, dtype)
        templates.append(template)
    return templates, planned


def _lower_template(
    base: BaseModel, plan: SlotPlan, foundation: FoundationIndex, dtype: str
) -> tuple[SplitTemplate, dict[str, int]]:
    """Lower the base with placeholders in every slot of `plan`; the base is as it was afterwards."""
    from lora_core.models.injection import eject
    from lora_core_xnnpack.split.templating import make_template

    values = placeholders(plan, dtype)
    module = attach(base, base.module, plan, values, dtype)
    try:
        lowered = lower({"forward": module}, base)
    finally:
        eject(module)
    _check_covered(_digests(lowered), foundation)
    stored = stored_placeholders(plan, values, dtype)
    return make_template(lowered, stored, foundation.sizes), _planned_memory(lowered)


def _planned_memory(lowered: Lowered) -> dict[str, int]:
    plans = lowered.manager.executorch_program.execution_plan
    return {plan.name: sum(plan.non_const_buffer_sizes) for plan in plans if plan.delegates or plan.operators}


def _digests(lowered: Lowered) -> dict[str, str]:
    """Return the SHA-256 of every foundation blob that a lowered program would read."""
    emitted = lowered.manager._emitter_output
    named = emitted.external_constant_map.get(FOUNDATION_TAG, {})
    digests = {name: _sha256(emitted.external_constant_buffer[index]) for name, index in named.items()}
    store = lowered.manager._named_data
    entries = store.external_data.get(FOUNDATION_TAG, {}) if store else {}
    return digests | {key: _sha256(store.buffers[entry.buffer_index]) for key, entry in entries.items()}


def _check_covered(needed: Mapping[str, str], foundation: FoundationIndex) -> None:
    wrong = sorted(key for key, digest in needed.items() if foundation.digests.get(key) != digest)
    if wrong:
        raise LoraCoreError(
            f"The template reads {len(wrong)} tensors that the foundation does not hold: {', '.join(wrong[:5])}.",
            remedy="The base was lowered differently with LoRA attached; please report the model and the policy.",
        )


def _sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
