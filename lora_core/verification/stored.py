"""Check of precision: what a policy leaves alone is stored as it is, and what it quantizes is not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.plan import padded_pair
from lora_core.bundle.bundle import Bundle
from lora_core.models.base import BaseModel, LayerInfo
from lora_core.quant.policy import QuantPolicy, Scheme
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


def base_precision(bundle: Bundle, blobs: Sequence[Blob], base: BaseModel) -> Finding:
    """Layers that the policy leaves at full precision are stored in float32 byte for byte, those it quantizes not.

    For backends whose `WeightSharing.plain_weights` says that they store weights so. Of layers that share one weight
    (an output head tied to the embedding) only one need be stored so: the other's float32 bytes are the same.
    """
    hashes = {layer.name: digest(_weight(base, layer)) for layer in base.summary.layers}
    assignment = recorded_policy(bundle.manifest.policy).assign(base.summary.layers)
    shared = {blob.sha256 for blob in blobs if blob.methods == frozenset(m.name for m in bundle.manifest.methods)}
    anywhere = {blob.sha256 for blob in blobs}
    plain = {hashes[name] for name, scheme in assignment.schemes.items() if scheme is None}
    kept = sum(scheme is None for scheme in assignment.schemes.values())
    problems = []
    for name, scheme in assignment.schemes.items():
        if scheme is None and hashes[name] not in shared:
            problems.append(f"{name} is not stored in float32 for all methods, and the policy does not quantize it")
        elif scheme is not None and hashes[name] in anywhere - plain:
            problems.append(f"{name} is stored in float32, and the policy quantizes it to {scheme.bits} bits")
    return found("precision", "bundle", problems, held=f"{kept} of {len(hashes)} weights in float32")


def adapter_precision(bundle: Bundle, blobs: Sequence[Blob], adapter: Adapter) -> Finding:
    """Every A and B is stored in float32, the scaling folded into B, and read by the adapter's method."""
    entry = next(each for each in bundle.manifest.adapters if each.name == adapter.name)
    methods = {method.name for method in bundle.manifest.methods if method.adapter == adapter.name}
    read = {blob.sha256 for blob in blobs if blob.methods & methods}
    problems = []
    for slot, pair in bundle.manifest.plans[entry.plan].bind(adapter):
        if pair is None:
            continue
        matrices = padded_pair(pair, slot)
        if not all(matrix.any() for matrix in matrices):
            continue  # the product is zero, and any pair whose product is zero may stand for it
        problems += [
            f"{letter} of {slot.module} is not stored with its values"
            for letter, matrix in zip("AB", matrices, strict=True)
            if digest(matrix) not in read
        ]
    return found("precision", adapter.name, problems, held=f"{len(adapter.pairs)} pairs in float32")


def digest(values: npt.NDArray[np.float32]) -> str:
    """Return the SHA-256 of the float32 bytes of `values`, row after row."""
    import numpy as np

    return hashlib.sha256(np.ascontiguousarray(values, dtype=np.float32).data).hexdigest()


def _weight(base: BaseModel, layer: LayerInfo) -> npt.NDArray[np.float32]:
    weight: npt.NDArray[np.float32] = base.module.get_submodule(layer.path).weight.detach().numpy()
    return weight
