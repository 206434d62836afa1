"""What this plugin offers, as import-free descriptors."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.limits import FLOAT16, INT8
from lora_core.quant.policy import QuantPolicy
from lora_core.specs import BackendSpec, ReservedNames
from lora_core_xnnpack.adapter_dtype import ADAPTER_SCHEMES
from lora_core_xnnpack.policies import POLICIES

# `forward` is the base's method. What ExecuTorch's runners read as metadata are methods beside it: `get_max_seq_len`,
# `use_kv_cache`, `enable_dynamic_shape`.
RESERVED = ReservedNames(names=frozenset({"forward"}), beginnings=("get_", "use_", "enable_", "append_", "kv_"))


XNNPACK = BackendSpec(
    name="xnnpack",
    summary="ExecuTorch programs for CPUs, one foundation file shared through XNNPACK's weight cache",
    target="lora_core_xnnpack.backend:XnnpackBackend",
    options="lora_core_xnnpack.options:XnnpackOptions",
    capabilities=frozenset({Capability.EXPORT, Capability.LINK, Capability.RUN, Capability.STRENGTH, Capability.BLEND}),
    selection_options={"lora": "inputs"},
    policies=("fp32", "fp16", "8da4w", "8da8w", *(policy.name for policy in POLICIES)),
    embeddings=True,
    session_options="lora_core_xnnpack.session_options:XnnpackSessionOptions",
    reserved=RESERVED,
    kinds=("low_rank", "gain", "shift", "dense", "lookup", "rows", "tokens", "token_logits"),
    adapter_dtypes=ADAPTER_SCHEMES,
    option_limits={"kv_cache": {"fp16": FLOAT16, "int8": INT8}},
    requires={"executorch": "1.5.1", "torch": "2.13.0", "torchao": "0.18.0"},
    install_hint="pip install lora-core-xnnpack",
)


@hookimpl
def lora_core_register_backends() -> Sequence[BackendSpec]:
    """Return the XNNPACK backend."""
    return (XNNPACK,)


@hookimpl
def lora_core_register_quant_policies() -> Sequence[QuantPolicy]:
    """Offer the policies that the core does not have."""
    return POLICIES
