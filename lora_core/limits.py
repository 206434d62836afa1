"""How far a bundle's numbers may be from full precision: limits as data, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs


@attrs.frozen(kw_only=True)
class Limits:
    """What the numbers of a method must keep to. Errors are in units of the reference's spread, the standard deviation
    of its logits; None judges nothing.

    `max_error` and `mean_error`: largest and mean absolute error. `kl`: mean Kullback-Leibler divergence in nats.
    `top1`: smallest share of positions whose most likely token agrees. `greedy`: smallest mean share of a greedy text
    before the first other token. `tie`: two tokens whose reference logits are closer than this count as agreeing.
    `effect`: how far the size of an adapter's effect (1: that of the reference) may be from 1; `direction`: smallest
    cosine between the adapter's effect and the reference's. `reason` says where the figures come from.
    """

    reason: str
    kl: float
    top1: float
    greedy: float
    effect: float
    direction: float
    max_error: float | None = None
    mean_error: float | None = None
    tie: float = 0.0

    def loosened(self, other: Limits) -> Limits:
        """Return what both allow together: of each figure the wider one."""
        return Limits(
            reason=self.reason if other.reason in self.reason else f"{self.reason} {other.reason}",
            kl=max(self.kl, other.kl),
            top1=min(self.top1, other.top1),
            greedy=min(self.greedy, other.greedy),
            effect=max(self.effect, other.effect),
            direction=min(self.direction, other.direction),
            max_error=_wider(self.max_error, other.max_error),
            mean_error=_wider(self.mean_error, other.mean_error),
            tie=max(self.tie, other.tie),
        )


FLOAT32 = Limits(
    reason="Only the order of additions differs; SmolLM2 (30 layers) measures 4e-5 of the spread and KL 4e-11.",
    max_error=1e-3,
    mean_error=1e-4,
    kl=1e-5,
    top1=1.0,
    greedy=1.0,
    tie=2e-3,
    effect=0.01,
    direction=0.9999,
)
FLOAT16 = Limits(
    reason="11 bits of mantissa, a relative error of 5e-4 an operation.",
    max_error=0.1,
    mean_error=0.02,
    kl=1e-3,
    top1=0.95,
    greedy=0.9,
    tie=0.05,
    effect=0.05,
    direction=0.99,
)
INT8 = Limits(
    reason="8-bit weights or activations: tiny random models with 8da8w measure KL 0.006 to 0.02, effects within 0.2%.",
    kl=0.05,
    top1=0.8,
    greedy=0.3,
    tie=0.1,
    effect=0.2,
    direction=0.9,
)
INT4 = Limits(
    reason="4-bit weights in groups of 32: SmolLM2-135M, small and so hurt most, measures KL 0.45, cosine 0.73.",
    kl=1.5,
    top1=0.5,
    greedy=0.05,
    tie=0.2,
    effect=0.5,
    direction=0.5,
)


OptionLimits = Mapping[str, Mapping[Any, Limits]]
"""What values of an export's options cost in precision, by the option's name."""


def limits_for(
    policy: Mapping[str, Any],
    own: Mapping[str, Limits],
    options: Mapping[str, Any] | None = None,
    of_options: OptionLimits | None = None,
) -> Limits:
    """Return the limits of `policy` as a manifest records it.

    They follow from its schemes: the widest of what its linear layers, output head, embeddings and LoRA matrices need.
    `own` are the limits that a backend states by policy name (`BackendSpec.limits`), in place of those; a quantized
    embedding, which callers can add to any policy, widens them too. So do those of the manifest's `options` that
    `of_options` (`BackendSpec.option_limits`) has limits for.
    """
    parts = ("embedding",) if policy.get("name") in own else ("linear", "output", "embedding", "lora")
    limits = own.get(str(policy.get("name")), FLOAT32)
    for part in parts:
        scheme = policy.get(part)
        if scheme is not None:
            limits = limits.loosened(_of_scheme(scheme))
    for name, known in (of_options or {}).items():
        value = (options or {}).get(name)
        if value in known:
            limits = limits.loosened(known[value])
    return limits


def _of_scheme(scheme: Mapping[str, Any]) -> Limits:
    bits = int(scheme["bits"])
    if bits < 8:
        return INT4
    if bits < 16 or scheme.get("activations", "float") != "float":
        return INT8
    return FLOAT16


def _wider(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)
