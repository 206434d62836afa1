"""What tells the blocks of one decoder apart: how far they see, how they know positions, and how wide they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, Literal

import attrs

from lora_core.errors import Problem
from lora_core.models.families import ModelFamily
from lora_core.models.sizes import is_size, not_a_size

FULL, SLIDING, CONVOLUTION, DELTA = "full_attention", "sliding_attention", "conv", "linear_attention"
_MIXES: Mapping[str, Literal["attention", "convolution", "delta"]] = {
    FULL: "attention",
    CONVOLUTION: "convolution",
    DELTA: "delta",
}


@attrs.frozen(kw_only=True)
class LayerKind:
    """One block: what mixes its tokens, the `window` of tokens that attention reaches (None: all), and which rotary
    table it uses.

    Sizes are its own; None is the decoder's. A block that `borrows` attends to the keys and values of the last one
    before it with these positions that `lends` its own. `values_are_keys` says that one layer makes both, `experts`
    that it has them in place of its MLP.
    """

    mixes: Literal["attention", "convolution", "delta"] = "attention"
    window: int | None = None
    positions: Literal["global", "local", "none"] = "global"
    head_dim: int | None = None
    kv_heads: int | None = None
    hidden_dim: int | None = None
    borrows: bool = False
    lends: bool = False
    values_are_keys: bool = False
    experts: bool = False


def read_kinds(
    config: Mapping[str, Any], family: ModelFamily, where: str
) -> tuple[tuple[LayerKind, ...], list[Problem]]:
    """Return the kind of each block of a configuration whose sizes have been checked, or what stands against it."""
    count = config["num_hidden_layers"]
    wrong = [field for field in _counted(config, family) if not is_size(config.get(field))]
    if wrong:
        return (), [not_a_size(field, config.get(field), where) for field in wrong]
    rotated = _rotated(config, family, count)
    types = _types(config, family, count)
    problems = _check(types, rotated, count, {FULL, _other(family)}, where)
    if problems:
        return (), problems
    windows = _windows(config, family, types, rotated)
    local = "local" if family.local_theta is not None else "global"
    sliding = [kind == SLIDING for kind in types] if types is not None else [each is not None for each in windows]
    if _other(family) != SLIDING and types is not None:
        return tuple(LayerKind(mixes=_MIXES[kind]) for kind in types), []
    return tuple(
        LayerKind(window=window, positions=(local if slides else "global") if turns else "none")  # type: ignore[arg-type]
        for window, slides, turns in zip(windows, sliding, rotated, strict=True)
    ), []


def _counted(config: Mapping[str, Any], family: ModelFamily) -> list[str]:
    """Return the fields with a number of tokens or layers that `config` makes count."""
    untyped = config.get("layer_types") is None
    counts = {
        "sliding_window": config.get("sliding_window") is not None and _slides(config, family),
        "sliding_window_pattern": untyped and family.sliding_window == "by_type",
        "no_rope_layer_interval": config.get("no_rope_layers") is None and family.no_rope,
        "full_attention_interval": untyped and family.delta,
    }
    return [field for field, does in counts.items() if does]


def _slides(config: Mapping[str, Any], family: ModelFamily) -> bool:
    """Return whether the field `sliding_window` counts."""
    if family.sliding_window in ("by_layer", "if_used"):
        return bool(config.get("use_sliding_window"))
    return family.sliding_window != "never"


def _rotated(config: Mapping[str, Any], family: ModelFamily, count: int) -> Sequence[Any]:
    if not family.no_rope:
        return [True] * count
    listed = config.get("no_rope_layers")
    if listed is not None:
        return list(listed)[:count]
    return [(index + 1) % config["no_rope_layer_interval"] != 0 for index in range(count)]


def _other(family: ModelFamily) -> str:
    """Return the type of layers that a family has beside full attention."""
    return CONVOLUTION if family.convolutions else DELTA if family.delta else SLIDING


def _types(config: Mapping[str, Any], family: ModelFamily, count: int) -> Sequence[Any] | None:
    """Return the types of the blocks where the configuration says them."""
    if family.sliding_window not in ("by_layer", "by_type") and _other(family) == SLIDING:
        return None
    given: Sequence[Any] | None = config.get("layer_types")
    if family.last_attends_fully:
        return _ending_fully(config, count) if given is None else [*given[:-1], FULL]
    if given is None and family.delta:
        return [DELTA if (index + 1) % config["full_attention_interval"] else FULL for index in range(count)]
    attending = config.get("full_attn_idxs") if family.convolutions else None
    if given is None and attending is not None:
        return [FULL if index in attending else CONVOLUTION for index in range(count)]
    return given


def _ending_fully(config: Mapping[str, Any], count: int) -> Sequence[str]:
    slides = [(index + 1) % config["sliding_window_pattern"] != 0 for index in range(count - 1)]
    return [*(SLIDING if each else FULL for each in slides), FULL]


def _check(
    types: Sequence[Any] | None, rotated: Sequence[Any], count: int, known: Set[str], where: str
) -> list[Problem]:
    problems = []
    if len(rotated) < count:
        what = f"no_rope_layers has {len(rotated)} entries for {count} layers"
        problems.append(Problem(what=what, where=f"{where}: no_rope_layers"))
    if types is None:
        return problems
    strange = sorted({str(kind) for kind in types} - known)
    if strange:
        what = f"Layers of type {', '.join(strange)} are not supported"
        problems.append(Problem(what=what, where=f"{where}: layer_types"))
    elif len(types) != count:
        what = f"layer_types has {len(types)} entries for {count} layers"
        problems.append(Problem(what=what, where=f"{where}: layer_types"))
    return problems


def _windows(
    config: Mapping[str, Any], family: ModelFamily, types: Sequence[str] | None, rotated: Sequence[Any]
) -> list[int | None]:
    """Return the window of each block."""
    count, window = len(rotated), config.get("sliding_window")
    if window is None or not _slides(config, family):
        return [None] * count
    if family.sliding_window in ("all", "if_used"):
        return [window] * count
    if types is not None:
        slides = [kind == SLIDING for kind in types]
    elif family.sliding_window == "by_type":
        slides = [(index + 1) % config["sliding_window_pattern"] != 0 for index in range(count)]
    elif family.no_rope:
        slides = [not turns for turns in rotated]
    else:
        slides = [index >= config.get("max_window_layers", 0) for index in range(count)]
    return [window if each else None for each in slides]
