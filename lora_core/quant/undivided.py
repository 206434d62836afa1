"""Layers that a group size does not divide, told to the user rather than skipped in silence."""

from __future__ import annotations

from lora_core.quant.policy import Assignment, QuantPolicy

_SHOWN = 5


def describe_undivided(policy: QuantPolicy, assignment: Assignment) -> tuple[str, ...]:
    """Return one sentence for each group size that leaves layers at full precision, naming them."""
    by_size: dict[int, list[str]] = {}
    for layer in assignment.undivided:
        scheme = policy.decide(layer)
        if scheme is not None and scheme.group_size:
            by_size.setdefault(scheme.group_size, []).append(layer.name)
    return tuple(_sentence(policy.name, size, names) for size, names in by_size.items())


def _sentence(policy: str, size: int, names: list[str]) -> str:
    layers = "1 layer" if len(names) == 1 else f"{len(names)} layers"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"Policy {policy} leaves {layers} at full precision, whose width the group size {size} does not divide: "
        f"{', '.join(names[:_SHOWN])}{more}."
    )
