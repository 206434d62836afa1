"""Blocks with experts in place of the MLP, as Qwen3-MoE's fields have it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_core.errors import Problem
from lora_core.models.layer_kinds import LayerKind
from lora_core.models.sizes import is_size, not_a_size

_SIZES = {"count": "num_experts", "chosen": "num_experts_per_tok", "hidden_dim": "moe_intermediate_size"}


@attrs.frozen(kw_only=True)
class Experts:
    """How many MLPs a block has, how many of them are `chosen` for each token, and the width of each.

    What they give is weighted by the probabilities of the chosen, which add up to one if it `normalizes`.
    """

    count: int
    chosen: int
    hidden_dim: int
    normalizes: bool


def read_experts(
    kinds: Sequence[LayerKind], config: Mapping[str, Any], where: str
) -> tuple[tuple[LayerKind, ...], Experts | None, list[Problem]]:
    """Return `kinds` with those that have experts, what these are, and what stands against it."""
    sizes = {name: config.get(field) for name, field in _SIZES.items()}
    step, plain = config.get("decoder_sparse_step"), config.get("mlp_only_layers") or ()
    problems = [not_a_size(_SIZES[name], size, where) for name, size in sizes.items() if not is_size(size)]
    if not is_size(step):
        problems.append(not_a_size("decoder_sparse_step", step, where))
    if not isinstance(plain, list | tuple):
        problems.append(Problem(what="mlp_only_layers is no list of layers", where=f"{where}: mlp_only_layers"))
    if not problems and sizes["chosen"] > sizes["count"]:  # type: ignore[operator]  # checked just before
        what = f"num_experts_per_tok is {sizes['chosen']}, of {sizes['count']} experts"
        problems.append(Problem(what=what, where=f"{where}: num_experts_per_tok"))
    if config.get("hidden_act") not in (None, "silu", "swish"):
        what = f"Experts with the activation {config['hidden_act']!r} are not supported"
        problems.append(Problem(what=what, where=f"{where}: hidden_act"))
    if problems:
        return tuple(kinds), None, problems
    found = [
        attrs.evolve(kind, experts=index not in plain and (index + 1) % step == 0)  # type: ignore[operator]
        for index, kind in enumerate(kinds)
    ]
    return tuple(found), Experts(**sizes, normalizes=bool(config.get("norm_topk_prob"))), []  # type: ignore[arg-type]
