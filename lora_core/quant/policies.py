"""The core's own quantization policies, and how a policy is chosen by name and options."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from lora_core.errors import PolicyError, Problem
from lora_core.quant.policy import FP16, QuantPolicy, Scheme
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


# The head is where 4 bits cost most, and a table of rows needs no more than 8: a tied one is then stored once.
_HEAD = _dynamic(8, None)
_TABLE = Scheme(bits=8, granularity="channel")
_FLOAT = "float"

POLICIES: tuple[QuantPolicy, ...] = (
    QuantPolicy(name="fp32", summary="Full precision: nothing is quantized"),
    FP16,
    QuantPolicy(
        name="8da4w",
        summary="4-bit linear weights in groups, 8-bit head and embedding, activations quantized to 8 bits at run time",
        linear=_dynamic(4, DEFAULT_GROUP_SIZE),
        output=_HEAD,
        embedding=_TABLE,
    ),
    QuantPolicy(
        name="8da8w",
        summary="8-bit linear weights per channel, activations quantized to 8 bits at run time",
        linear=_dynamic(8, None),
        output=_HEAD,
    ),
)


def parse_policy(
    name: str,
    registry: Mapping[str, QuantPolicy],
    *,
    group_size: int | None = None,
    embedding: str | None = None,
    head: str | None = None,
) -> QuantPolicy:
    """Return the policy `name` of `registry` with the caller's options applied; it keeps its name.

    `group_size` replaces the group size of its linear layers (0: one scale per output channel), and of the head where
    it is quantized as they are. `embedding` and `head` are `BITS,GROUP` (see `parse_embedding`, `parse_head`) or
    `float`. None keeps what the policy says. Raises `PolicyError` with every problem.
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
    try:
        if embedding is not None:
            policy = attrs.evolve(policy, embedding=parse_embedding(embedding))
    except PolicyError as error:
        problems += error.problems
    try:
        if head is not None:
            policy = attrs.evolve(policy, output=parse_head(head, policy))
    except PolicyError as error:
        problems += error.problems
    if problems:
        raise PolicyError(problems)
    return policy


def parse_embedding(text: str) -> Scheme | None:
    """Return the scheme that `BITS,GROUP` asks for: 4 or 8 bits, GROUP elements a scale, 0 for one scale per row.

    None for `float`, which leaves embeddings as they are. Raises `PolicyError`.
    """
    return _parsed(text, "An embedding")


def parse_head(text: str, policy: QuantPolicy) -> Scheme | None:
    """Return the scheme that `BITS,GROUP` or `float` asks for an output head of `policy`, as `parse_embedding` does.

    Its activations are those of the policy's linear layers. Raises `PolicyError`, also if there are none.
    """
    like = policy.output or policy.linear
    scheme = _parsed(text, "An output head")
    if like is None:
        raise PolicyError(
            f"Policy {policy.name!r} quantizes no linear layers, so a head has no scheme to follow",
            remedy="Leave the head out, or choose another policy.",
        )
    return None if scheme is None else attrs.evolve(scheme, activations=like.activations)


def _parsed(text: str, what: str) -> Scheme | None:
    if text == _FLOAT:
        return None
    bits, comma, group = text.partition(",")
    try:
        numbers = int(bits), int(group) if comma else 0
    except ValueError:
        numbers = (0, 0)
    if numbers[0] not in EMBEDDING_BITS or numbers[1] < 0:
        raise PolicyError(
            f"{what} is quantized as BITS,GROUP with 4 or 8 bits, not {text!r}",
            remedy="For example 8,0 (one scale per row) or 4,32; float leaves it as it is.",
        )
    if numbers[1] % 2:
        raise PolicyError(f"The group size of {what[0].lower()}{what[1:]} must be even, not {numbers[1]}.")
    return Scheme(bits=numbers[0], granularity="group" if numbers[1] else "channel", group_size=numbers[1] or None)


def _regrouped(policy: QuantPolicy, group_size: int) -> QuantPolicy:
    def regroup(scheme: Scheme | None) -> Scheme | None:
        if scheme is None:
            return None
        return attrs.evolve(scheme, granularity="group" if group_size else "channel", group_size=group_size or None)

    head = regroup(policy.output) if policy.linear is None or policy.output == policy.linear else policy.output
    # A tied pair that has one scheme is stored once, and keeps to one.
    embedding = head if policy.embedding == policy.output else policy.embedding
    return attrs.evolve(policy, linear=regroup(policy.linear), output=head, embedding=embedding)
