"""What this plugin offers: descriptors only."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.quant.policy import QuantPolicy
from lora_core.specs import BackendSpec, ReservedNames
from lora_core_onnx.quant import POLICIES

_INPUTS = "what an adapter file gives values to are the model's inputs, and these are A and B of linear layers"
_FLOAT32 = "an adapter file has the type of the model's inputs, and these are float32"

ONNX = BackendSpec(
    name="onnx",
    summary="One ONNX model with LoRA as inputs, adapters as .onnx_adapter files, for ONNX Runtime and its GenAI",
    target="lora_core_onnx.backend:OnnxBackend",
    options="lora_core_onnx.options:OnnxOptions",
    capabilities=frozenset({Capability.EXPORT, Capability.LINK, Capability.RUN, Capability.STRENGTH, Capability.BLEND}),
    policies=("fp32", *(policy.name for policy in POLICIES)),
    session_options="lora_core_onnx.session_options:OnnxSessionOptions",
    slot_plans=False,
    reserved=ReservedNames(names=frozenset({"forward"})),  # the base's method
    refused_kinds=dict.fromkeys(("gain", "shift", "dense", "lookup", "rows", "tokens", "token_logits"), _INPUTS),
    adapter_dtypes={"fp32": None},
    refused_adapter_dtypes=dict.fromkeys(("fp16", "int8"), _FLOAT32),
    requires={"onnx": "1.23.2", "onnxruntime": "1.32.0"},
    install_hint="pip install lora-core-onnx",
)


@hookimpl
def lora_core_register_backends() -> Sequence[BackendSpec]:
    """Offer ONNX Runtime."""
    return (ONNX,)


@hookimpl
def lora_core_register_quant_policies() -> Sequence[QuantPolicy]:
    """Offer policies that quantize weights alone."""
    return POLICIES
