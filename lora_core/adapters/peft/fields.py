"""The fields of `adapter_config.json` that lora-core reads: which must be there, and of what type."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from lora_core.adapters.targets import LAYER_INDEX, NAME_END
from lora_core.errors import Problem
from lora_core.intake.patterns import LOOPS, compiled, quick

_PATTERNS = 5_000
"""Entries of a pattern map: far more than the layers of any model."""
_REQUIRED = ("peft_type", "r", "lora_alpha", "target_modules")


def malformed_fields(config: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for each field that is missing, of the wrong type, or contradicts another; `where` is the field
    alone, for the caller to complete with the file.
    """
    return [*_missing(config), *_mistyped(config), *_contradictions(config)]


def _missing(config: Mapping[str, Any]) -> list[Problem]:
    return [
        Problem(what=f"Its field {field!r} is missing", where=field, remedy="peft always writes it: add its value.")
        for field in _REQUIRED
        if field not in config
    ]


def _mistyped(config: Mapping[str, Any]) -> list[Problem]:
    return [
        Problem(what=f"Its field {field} must be {expected}, not {_short(config[field])}", where=field)
        for field, (expected, valid) in _FIELDS.items()
        if field in config and not valid(config[field])
    ]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _contradictions(config: Mapping[str, Any]) -> list[Problem]:
    """Return the combinations that `LoraConfig.__post_init__` refuses."""
    problems = []
    for field in ("layers_to_transform", "layers_pattern"):
        if isinstance(config.get("target_modules"), str) and config.get(field) is not None:
            what = f"{field} has no meaning when target_modules is a regular expression; peft refuses it too"
            problems.append(Problem(what=what, where=field, remedy="List the targets, or drop the field."))
    if config.get("layers_pattern") and config.get("layers_to_transform") is None:
        what = "layers_pattern needs layers_to_transform; peft refuses it alone"
        problems.append(
            Problem(what=what, where="layers_pattern", remedy="Set layers_to_transform, or drop the field.")
        )
    return problems


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and _is_int(value) and abs(value) < 2**53


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and _is_int(value) and 0 < value < 2**31


def _is_pattern(value: object, around: str = "{}") -> bool:
    """Accept a regular expression that also compiles where it is put (`around`, from `targets`); those that are matched
    with one module after the other have to be quick.
    """
    if not isinstance(value, str):
        return False
    try:
        compiled(around.format(value))
    except re.error:
        return False
    return around == "{}" or quick(value)


def _is_names(value: object) -> bool:
    """Accept a regular expression, or a list of names."""
    if isinstance(value, list):
        return all(isinstance(item, str) and item for item in value)
    return value is None or (value != "" and _is_pattern(value))


def _is_layers(value: object) -> bool:
    return value is None or _is_int(value) or (isinstance(value, list) and all(map(_is_int, value)))


def _is_patterns(value: object) -> bool:
    patterns = value if isinstance(value, list) else [value]
    return value is None or all(_is_pattern(pattern, LAYER_INDEX) for pattern in patterns)


def _is_map_of(valid: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if value is None:
            return True
        return (
            isinstance(value, dict)
            and len(value) <= _PATTERNS
            and all(_is_pattern(key, NAME_END) and valid(item) for key, item in value.items())
        )

    return check


def _is_flag(value: object) -> bool:
    return value is None or isinstance(value, bool)


def _is_tokens(value: object) -> bool:
    """Accept the numbers of tokens, or such a list for each of some layers."""
    if isinstance(value, dict):
        return bool(value) and all(isinstance(key, str) and key and _is_numbers(ids) for key, ids in value.items())
    return value is None or _is_numbers(value)


def _is_numbers(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(each, int) and _is_int(each) and 0 <= each < 2**24 for each in value)
        and len(set(value)) == len(value)
    )


_QUICK = f"without repeated groups and with at most {LOOPS} of * + {{"
_NAMES = "a regular expression or a list of names"
_FIELDS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "r": ("a positive whole number", _is_rank),
    "lora_alpha": ("a finite number", _is_number),
    "use_rslora": ("true or false", _is_flag),
    "use_dora": ("true or false", _is_flag),
    "bias": ("none, all or lora_only", lambda value: value in (None, "none", "all", "lora_only")),
    "modules_to_save": (
        "a list of names",
        lambda value: value is None or (isinstance(value, list) and _is_names(value)),
    ),
    "fan_in_fan_out": ("true or false", _is_flag),
    "ensure_weight_tying": ("true or false", _is_flag),
    "rank_pattern": (f"at most {_PATTERNS} regular expressions with a rank each, {_QUICK}", _is_map_of(_is_rank)),
    "alpha_pattern": (f"at most {_PATTERNS} regular expressions with an alpha each, {_QUICK}", _is_map_of(_is_number)),
    "target_modules": (_NAMES, _is_names),
    "exclude_modules": (_NAMES, lambda value: value == "" or _is_names(value)),
    "layers_to_transform": ("a layer number or a list of them", _is_layers),
    "layers_pattern": (f"a regular expression or a list of them, {_QUICK}", _is_patterns),
    "trainable_token_indices": ("a list of different token ids, or one for each layer by name", _is_tokens),
    "base_model_name_or_path": ("a name", lambda value: value is None or isinstance(value, str)),
}
