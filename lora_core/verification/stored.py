"""Check of precision: what a policy leaves alone is stored as it is, and what it quantizes is not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import place, place_alone
from lora_core.adapters.slots.kinds import kind_of
from lora_core.bundle.bundle import Bundle
from lora_core.models.base import ModelHandle
from lora_core.quant.policy import HALF, QuantPolicy, Scheme
from lora_core.sharing.blobs import Blob
from lora_core.verification.finding import Finding, found

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def recorded_policy(policy: Mapping[str, Any]) -> QuantPolicy:
    """Return the policy that a manifest records."""
    parts = {
        part: Scheme(**policy[part]) if policy.get(part) is not None else None
        for part in ("linear", "output", "embedding", "lora")
    }
    return QuantPolicy(name=str(policy.get("name", "")), summary=str(policy.get("summary", "")), **parts)


def base_precision(bundle: Bundle, blobs: Sequence[Blob], model: ModelHandle) -> Finding:
    """Layers that the policy leaves at full precision are stored in float32 byte for byte, those that it gives float16
    in that, those it quantizes not.

    For backends whose `WeightSharing.plain_weights` says that they store weights so. Of layers that share one weight
    (an output head tied to the embedding) only one need be stored so: the other's float32 bytes are the same.
    """
    layers, tensors = model.summary.layers, model.tensors()
    assignment = recorded_policy(bundle.manifest.policy).assign(layers)
    hashes, halves = {}, {}
    for layer in layers:
        weight = tensors[f"{layer.tied_to or layer.name}.weight"].read()
        hashes[layer.name] = digest(weight)
        if assignment.schemes[layer.name] == HALF:
            halves[layer.name] = digest(weight, dtype="float16")
    shared = {blob.sha256 for blob in blobs if blob.methods == frozenset(m.name for m in bundle.manifest.methods)}
    anywhere = {blob.sha256 for blob in blobs}
    plain = {hashes[name] for name, scheme in assignment.schemes.items() if scheme is None}
    kept = sum(scheme is None for scheme in assignment.schemes.values())
    problems = []
    for name, scheme in assignment.schemes.items():
        if scheme is None and hashes[name] not in shared:
            problems.append(f"{name} is not stored in float32 for all methods, and the policy does not quantize it")
        elif name in halves and halves[name] not in shared:
            problems.append(f"{name} is not stored in float16 for all methods, and the policy rounds it to that")
        elif scheme is not None and hashes[name] in anywhere - plain:
            problems.append(f"{name} is stored in float32, and the policy quantizes it to {scheme.bits} bits")
    held = f"{kept} of {len(hashes)} weights in float32" + (f", {len(halves)} in float16" if halves else "")
    return found("precision", "bundle", problems, held=held)


def adapter_precision(bundle: Bundle, blobs: Sequence[Blob], adapter: Adapter) -> Finding:
    """Every part of every slot is stored in float32, scaling folded in, and read by the adapter's method; or in float16
    if the policy rounds LoRA to that.

    Slots are those of the plan that the bundle records; without plans, the adapter's own, at its own ranks.
    """
    plans = bundle.manifest.plans
    entry = next(each for each in bundle.manifest.adapters if each.name == adapter.name)
    layers = bundle.manifest.base.layers
    placed = place([adapter], [plans[entry.plan]]) if plans else place_alone([adapter], layers)
    methods = {method.name for method in bundle.manifest.methods if method.adapter == adapter.name}
    read = {blob.sha256 for blob in blobs if blob.methods & methods}
    half = recorded_policy(bundle.manifest.policy).lora == HALF
    targeted = {(update.module, update.kind) for update in adapter.updates}
    problems = []
    for slot, values in placed[0].values():
        if (slot.module, slot.kind) not in targeted:
            continue
        if kind_of(slot.kind).does_nothing(values):
            continue  # what does nothing may be stored as anything that does nothing
        problems += [
            f"{part.upper()} of {slot.module} is not stored with its values"
            for part, value in values.items()
            if digest(value) not in read and not (half and digest(value, dtype="float16") in read)
        ]
    held = f"{len(adapter.updates)} updates in {'float16' if half else 'float32'}"
    return found("precision", adapter.name, problems, held=held)


def digest(values: npt.NDArray[np.float32], *, dtype: str = "float32") -> str:
    """Return the SHA-256 of the bytes of `values` as `dtype`, row after row."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(values, dtype=dtype).data).hexdigest()
