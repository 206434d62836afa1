"""Lower the base and its templates, and write them as files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.slots import SlotPlan
from lora_core.backend import Artifacts, ExportJob
from lora_core.bundle.bundle import Method
from lora_core.errors import LoraCoreError
from lora_core.events import Emit, Warned, stage
from lora_core.linking.placeholders import placeholder_pairs
from lora_core.models.base import BaseModel, ModelOptions
from lora_core.quant.undivided import describe_undivided
from lora_core_xnnpack.linking import LinkTarget, link_all, write_template, written
from lora_core_xnnpack.lowering import FOUNDATION_TAG, Lowered, lower
from lora_core_xnnpack.quant import quantize

if TYPE_CHECKING:
    from lora_core_xnnpack.link import Template

FOUNDATION_FILE = "foundation.ptd"
BASE_PROGRAM = "base.pte"


@attrs.frozen(kw_only=True)
class Foundation:
    """The stored base: its fingerprint, and every key with the SHA-256 and the size of its bytes."""

    fingerprint: str
    digests: Mapping[str, str]
    sizes: Mapping[str, int]


def export_split(job: ExportJob, out: Path, emit: Emit) -> Artifacts:
    """Write the split layout: foundation, base program, a template for each plan, and every adapter linked."""
    base = load_base(job, emit)
    foundation, planned = lower_base(base, out, emit)
    artifacts = [written(out, FOUNDATION_FILE, "foundation"), written(out, BASE_PROGRAM, "program")]
    templates: list[Template] = []
    for index, plan in enumerate(job.plans):
        name = "template" if len(job.plans) == 1 else f"template {index + 1} of {len(job.plans)}"
        template, planned[f"template/{index}"] = lower_template(base, plan, foundation, name, emit)
        templates.append(template)
        artifacts += write_template(template, index, out)
    target = LinkTarget(
        plans=job.plans,
        template=templates.__getitem__,
        foundation=foundation.fingerprint,
        embed=job.options.adapter_data == "embedded",
    )
    linked = link_all(target, job.adapters, out, emit)
    return attrs.evolve(
        linked,
        artifacts=(*artifacts, *linked.artifacts),
        methods=(Method(name="forward", program=BASE_PROGRAM), *linked.methods),
        versions=tool_versions(),
        detail={"planned_memory": planned},
    )


def tool_versions() -> dict[str, str]:
    """Return the versions of the tools that decide an export's bytes."""
    return {name: version(name) for name in ("executorch", "torch", "torchao")}


def load_base(job: ExportJob, emit: Emit) -> BaseModel:
    """Load the base once and quantize it as the policy decides; layers left out are warned of."""
    options = job.options
    with stage(emit, "Load the base model"):
        base = job.model.load(ModelOptions(max_context_len=options.max_context_len, max_seq_len=options.max_seq_len))
    assignment = job.policy.assign(base.summary.layers)
    for message in describe_undivided(job.policy, assignment):
        emit(Warned(message=message))
    if any(assignment.schemes.values()):
        with stage(emit, f"Quantize the base ({job.policy.name})"):
            quantize(base.module, base.summary.layers, assignment, scale_search=options.scale_search)
    return base


def lower_base(base: BaseModel, out: Path, emit: Emit) -> tuple[Foundation, dict[str, Any]]:
    """Write `base.pte` and `foundation.ptd`; return the foundation and facts for the manifest."""
    with stage(emit, "Lower the base program"):
        lowered = lower({"forward": base.module}, base)
    with stage(emit, "Write the foundation"):
        (out / BASE_PROGRAM).write_bytes(lowered.pte)
        lowered.manager.write_tensor_data_to_file(str(out))
        foundation = _read_foundation(out / FOUNDATION_FILE)
    return foundation, {"base": planned_memory(lowered)}


def lower_template(
    base: BaseModel, plan: SlotPlan, foundation: Foundation, name: str, emit: Emit
) -> tuple[Template, dict[str, Any]]:
    """Lower the base with placeholders in every slot of `plan`; the base is as it was afterwards."""
    from lora_core.models.lora import eject, inject
    from lora_core_xnnpack.template import make_template

    placeholders = placeholder_pairs(plan)
    with stage(emit, f"Lower the {name}"):
        module = inject(base.module, plan, base.summary.layers, placeholders)
        try:
            lowered = lower({"forward": module}, base)
        finally:
            eject(base.module)
    _check_covered(_digests(lowered), foundation)
    return make_template(lowered, placeholders, foundation.sizes), planned_memory(lowered)


def planned_memory(lowered: Lowered) -> dict[str, int]:
    """Return, by method, the bytes of memory that the program plans for activations and the KV cache."""
    plans = lowered.manager.executorch_program.execution_plan
    return {plan.name: sum(plan.non_const_buffer_sizes) for plan in plans if plan.delegates or plan.operators}


def _read_foundation(path: Path) -> Foundation:
    from lora_core.sharing.fingerprint import file_sha256
    from lora_core_xnnpack.flat_tensor import stored_blobs

    data = path.read_bytes()
    blobs = stored_blobs(data, path)
    return Foundation(
        fingerprint=file_sha256(path),
        digests={blob.key: _sha256(data[blob.offset : blob.offset + blob.size]) for blob in blobs},
        sizes={blob.key: blob.size for blob in blobs},
    )


def _digests(lowered: Lowered) -> dict[str, str]:
    """Return the SHA-256 of every foundation blob that a lowered program would read."""
    emitted = lowered.manager._emitter_output
    named = emitted.external_constant_map.get(FOUNDATION_TAG, {})
    digests = {name: _sha256(emitted.external_constant_buffer[index]) for name, index in named.items()}
    store = lowered.manager._named_data
    entries = store.external_data.get(FOUNDATION_TAG, {}) if store else {}
    return digests | {key: _sha256(store.buffers[entry.buffer_index]) for key, entry in entries.items()}


def _check_covered(needed: Mapping[str, str], foundation: Foundation) -> None:
    wrong = sorted(key for key, digest in needed.items() if foundation.digests.get(key) != digest)
    if wrong:
        raise LoraCoreError(
            f"The template reads {len(wrong)} tensors that the foundation does not hold: {', '.join(wrong[:5])}.",
            remedy="The base was lowered differently with LoRA attached; please report the model and the policy.",
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
