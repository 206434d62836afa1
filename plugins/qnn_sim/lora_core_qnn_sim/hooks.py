"""What the plugin offers: descriptors only."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.capability import Capability
from lora_core.hookspecs import hookimpl
from lora_core.quant.policy import QuantPolicy, Scheme
from lora_core.specs import BackendSpec, CommandSpec, ReservedNames
from lora_core_qnn_sim.quant import POLICIES

_INTEGERS = "its graph computes with integers, and a LoRA matrix is one of --lora-bits 8 or 16"
_UPDATABLE = "what a binary section updates are the two matrices of a LoRA branch, and nothing else of the graph"


@hookimpl
def lora_core_register_backends() -> Sequence[BackendSpec]:
    """Offer the simulator."""
    return [
        BackendSpec(
            name="qnn_sim",
            summary="QNN-style simulator: context binary, binary sections and their rules, executed on the CPU",
            target="lora_core_qnn_sim.backend:QnnSimBackend",
            options="lora_core_qnn_sim.options:QnnSimOptions",
            capabilities=frozenset({Capability.EXPORT, Capability.LINK, Capability.RUN, Capability.STRENGTH}),
            policies=tuple(policy.name for policy in POLICIES),
            # Every policy quantizes the embedding: a static integer graph has no place for a float one.
            embeddings=True,
            # The base's method and its zero section; `NAME_weights` and `NAME_encodings` are sections of adapter NAME.
            reserved=ReservedNames(
                names=frozenset({"forward", "default_adapter"}),
                endings=("_encodings", "_weights", "_default_adapter"),
            ),
            install_hint="pip install lora-core-qnn-sim",
            adapter_dtypes={"int8": Scheme(bits=8, granularity="tensor")},
            refused_adapter_dtypes=dict.fromkeys(("fp32", "fp16"), _INTEGERS),
            refused_kinds=dict.fromkeys(
                ("gain", "shift", "dense", "lookup", "rows", "tokens", "token_logits"), _UPDATABLE
            ),
        )
    ]


@hookimpl
def lora_core_register_quant_policies() -> Sequence[QuantPolicy]:
    """Offer static integer policies."""
    return POLICIES


@hookimpl
def lora_core_register_commands() -> Sequence[CommandSpec]:
    """Offer the hand-over of a stored bundle."""
    summary = "Write the files that Qualcomm's tools take from a qnn_sim bundle"
    return [CommandSpec(name="qairt", summary=summary, target="lora_core_qnn_sim.command:command")]
