"""Which layers `--targets` reserves."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_core.adapters.targets import TargetSelection
from lora_core.errors import Problem
from lora_core.layers import LayerInfo


def reserved_layers(
    targets: str | Sequence[str], layers: Sequence[LayerInfo]
) -> tuple[frozenset[str], tuple[Problem, ...]]:
    """Return the linear layers that `targets` names as PEFT would, and a problem for each target that names none."""
    linear = [layer.name for layer in layers if layer.kind == "linear"]
    has = f"The base has {', '.join(last_parts(linear)) or 'no linear layers'}."
    selection = TargetSelection(target_modules=targets if isinstance(targets, str) else tuple(targets))
    try:
        found = selection.select(linear, layers)
    except re.error as error:
        what = f"--targets {targets!r} is not a regular expression: {error}"
        return frozenset(), (Problem(what=what, remedy=f"List names instead. {has}"),)
    unknown = [
        Problem(what=f"--targets names {target!r}, which is no linear layer", remedy=has)
        for target in selection.unknown(linear)
    ]
    if not found and not unknown:
        unknown.append(Problem(what=f"--targets {targets!r} matches no linear layer", remedy=has))
    return frozenset(found), tuple(unknown)


def last_parts(modules: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct last parts of module names (`q_proj`, `v_proj`), in the order they first appear."""
    return tuple(dict.fromkeys(module.rpartition(".")[2] for module in modules))
