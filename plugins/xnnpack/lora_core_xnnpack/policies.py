"""The policies that this backend has beside the core's."""

from __future__ import annotations

from lora_core.quant.policy import QuantPolicy, Scheme

_BY_ROW = Scheme(bits=8, granularity="channel")
POLICIES = (
    QuantPolicy(
        name="c8w",
        summary="8-bit linear weights, head and embedding, one scale per channel, activations in floating point",
        linear=_BY_ROW,
        output=_BY_ROW,
        embedding=_BY_ROW,
    ),
)
