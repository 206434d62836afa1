"""What this plugin offers: descriptors only."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.limits import FLOAT16
from lora_core.quant.policy import FP16, HALF, QuantPolicy
from lora_core.specs import BackendSpec
from lora_core_coreml.program.naming import RESERVED
from lora_core_coreml.quant import POLICIES

_TOKENS = "a program tells tokens apart by their numbers, and float16 holds whole numbers only up to 2048"

COREML = BackendSpec(
    name="coreml",
    summary="CoreML through ExecuTorch: adapters are methods of one program, base weights stored once.",
    target="lora_core_coreml.backend:CoremlBackend",
    options="lora_core_coreml.options:CoremlOptions",
    capabilities=frozenset(
        {Capability.EXPORT, Capability.LINK, Capability.EVALUATE, Capability.STRENGTH, Capability.BLEND}
    ),
    selection_options={"lora": "inputs"},
    policies=tuple(policy.name for policy in POLICIES),
    embeddings=True,
    session_options="lora_core_coreml.session_options:CoremlSessionOptions",
    reserved=RESERVED,
    requires={"coremltools": "9.0", "executorch": "1.5.1", "torch": "2.13.0", "torchao": "0.18.0"},
    install_hint="pip install lora-core-coreml",
    # Its schemes say that nothing is quantized; weights are float16 unless --dtype says otherwise.
    limits={"fp16": FLOAT16},
    kinds=("low_rank", "gain", "shift", "dense", "lookup", "rows"),
    refused_kinds=dict.fromkeys(("tokens", "token_logits"), _TOKENS),
    adapter_dtypes={"fp16": HALF},
    refused_adapter_dtypes={
        "fp32": "a program computes in one precision, which --dtype fp32 makes float32 for base and adapters",
        "int8": "an adapter's matrices are constants of the precision that the program computes in, and are not "
        "decompressed as those of the base are",
    },
)


@hookimpl
def lora_core_register_backends() -> Sequence[BackendSpec]:
    """Offer the CoreML backend."""
    return [COREML]


@hookimpl
def lora_core_register_quant_policies() -> Sequence[QuantPolicy]:
    """Offer the policies that CoreML programs are made with, but for the core's own."""
    return [policy for policy in POLICIES if policy != FP16]
