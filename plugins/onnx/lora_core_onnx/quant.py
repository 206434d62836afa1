"""Policies that make weights alone smaller, and what a policy asks for that this backend cannot do."""

from __future__ import annotations

from lora_core.errors import Problem
from lora_core.quant.policy import QuantPolicy, Scheme

HALF = 16
"""Bits of float16, which is a type and no scale."""
GROUP_SIZE = 32
MIN_GROUP_SIZE = 16
"""The smallest block of ONNX Runtime's `MatMulNBits`; blocks are powers of two."""


def _in_groups(bits: int) -> Scheme:
    return Scheme(bits=bits, granularity="group", group_size=GROUP_SIZE)


# The head is where 4 bits cost most, and a tied one of the embedding's scheme is stored once.
_TABLE = _in_groups(8)
_HALF = Scheme(bits=16, granularity="tensor")
POLICIES = (
    QuantPolicy(
        name="16w",
        summary="Weights in float16, activations in float32",
        linear=_HALF,
        output=_HALF,
        embedding=_HALF,
    ),
    QuantPolicy(
        name="8w",
        summary=f"8-bit weights in groups of {GROUP_SIZE}, activations in floating point",
        linear=_in_groups(8),
        output=_TABLE,
        embedding=_TABLE,
    ),
    QuantPolicy(
        name="4w",
        summary=f"4-bit linear weights in groups of {GROUP_SIZE}, 8-bit head and embedding, activations in floating "
        "point",
        linear=_in_groups(4),
        output=_TABLE,
        embedding=_TABLE,
    ),
)


def policy_problems(policy: QuantPolicy) -> list[Problem]:
    """Return what this backend cannot do of `policy`."""
    problems = []
    if policy.lora is not None:
        problems.append("quantizes LoRA matrices, which are stored in float32")
    parts = (("linear layers", policy.linear), ("the output head", policy.output), ("the embedding", policy.embedding))
    for part, scheme in parts:
        if scheme is not None and (reason := _objection(scheme)):
            problems.append(f"asks for {reason} for {part}")
    remedy = f"Choose fp32 or one of {', '.join(known.name for known in POLICIES)}."
    return [Problem(what=f"Policy {policy.name!r} {problem}", remedy=remedy) for problem in problems]


def _objection(scheme: Scheme) -> str | None:
    if scheme.activations != "float":
        return f"{scheme.activations} activations, and only weights are quantized here,"
    if scheme.bits == HALF:
        return None
    if scheme.bits not in (4, 8):
        return f"{scheme.bits} bits, and there are 4, 8 and 16,"
    size = scheme.group_size or 0
    if scheme.granularity != "group" or size < MIN_GROUP_SIZE or size & (size - 1):
        asked = f"groups of {size}" if scheme.granularity == "group" else f"one scale per {scheme.granularity}"
        return f"{asked}, and groups are powers of two from {MIN_GROUP_SIZE} on,"
    if not scheme.symmetric:
        return "asymmetric values, and they are symmetric here,"
    return None
