"""The core's own quantization policies, and how a policy is chosen by name and options."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lora_core.errors import PolicyError, Problem
from lora_core.quant.policy import QuantPolicy, Scheme
from lora_core.suggestions import did_you_mean

EMBEDDING_BITS = (4, 8)
# Divides the widths of small models too (576 = 18 * 32); ExecuTorch's own exporter defaults to 128.
DEFAULT_GROUP_SIZE = 32


def _dynamic(bits: int, group_size: int | None) -> Scheme:
    return Scheme(
        bits=bits,
        granularity="group" if group_size else "channel",
        group_size=group_size or None,
        activations="int8_dynamic",
    )


POLICIES: tuple[QuantPolicy, ...] = (
    QuantPolicy(name="fp32", summary="Full precision: nothing is quantized"),
    QuantPolicy(
        name="8da4w",
        summary="4-bit linear weights in groups, activations quantized to 8 bits at run time",
        linear=_dynamic(4, DEFAULT_GROUP_SIZE),
        output=_dynamic(4, DEFAULT_GROUP_SIZE),
    ),
    QuantPolicy(
        name="8da8w",
        summary="8-bit linear weights per channel, activations quantized to 8 bits at run time",
        linear=_dynamic(8, None),
        output=_dynamic(8, None),
    ),
)


def parse_policy(
    name: str,
    registry: Mapping[str, QuantPolicy],
    *,
    group_size: int | None = None,
    embedding: str | None = None,
) -> QuantPolicy:
    """Return the policy `name` of `registry` with the caller's options applied; it keeps its name.

    `group_size` replaces the group size of its linear layers (0: one scale per output channel). `embedding` is
    `BITS,GROUP` (see `parse_embedding`). None keeps what the policy says. Raises `PolicyError` with every problem.
    """
    try:
        policy = registry[name]
    except KeyError:
        what = f"There is no quantization policy {name!r}"
        raise PolicyError(Problem(what=what, remedy=did_you_mean(name, registry))) from None
    problems = []
    if group_size is not None:
        if group_size < 0:
            problems.append(Problem(what=f"The group size must be 0 (per channel) or more, not {group_size}"))
        elif policy.linear is None and policy.output is None:
            problems.append(
                Problem(
                    what=f"Policy {name!r} quantizes no linear layers, so a group size means nothing to it",
                    remedy="Leave the group size out, or choose another policy.",
                )
            )
        else:
            policy = _regrouped(policy, group_size)
    if embedding is not None:
        try:
            policy = attrs.evolve(policy, embedding=parse_embedding(embedding))
        except PolicyError as error:
            problems += error.problems
    if problems:
        raise PolicyError(problems)
    return policy


def parse_embedding(text: str) -> Scheme:
    """Return the scheme that `BITS,GROUP` asks for: 4 or 8 bits, GROUP elements a scale, 0 for one scale per row."""
    bits, comma, group = text.partition(",")
    try:
        numbers = int(bits), int(group) if comma else 0
    except ValueError:
        numbers = (0, 0)
    if numbers[0] not in EMBEDDING_BITS or numbers[1] < 0:
        what = f"An embedding is quantized as BITS,GROUP with 4 or 8 bits, not {text!r}"
        raise PolicyError(what, remedy="For example 8,0 (one scale per row) or 4,32.")
    if numbers[1] % 2:
        raise PolicyError(f"The group size of an embedding must be even, not {numbers[1]}.")
    return Scheme(bits=numbers[0], granularity="group" if numbers[1] else "channel", group_size=numbers[1] or None)


def _regrouped(policy: QuantPolicy, group_size: int) -> QuantPolicy:
    def regroup(scheme: Scheme | None) -> Scheme | None:
        if scheme is None:
            return None
        return attrs.evolve(scheme, granularity="group" if group_size else "channel", group_size=group_size or None)

    return attrs.evolve(policy, linear=regroup(policy.linear), output=regroup(policy.output))
