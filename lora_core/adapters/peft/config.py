"""`adapter_config.json` as values: what decides rank, scaling and targets of a PEFT LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.peft.fields import malformed_fields
from lora_core.adapters.peft.refusals import absent_heads, refused_fields, refused_type
from lora_core.adapters.targets import DEFAULT_TARGETS, TargetSelection, pattern_key
from lora_core.errors import AdapterError, Problem, StorageError
from lora_core.git_lfs import is_pointer, told
from lora_core.intake.files import read_regular
from lora_core.intake.limits import CONFIG
from lora_core.intake.plain_json import parse_json


@attrs.frozen(kw_only=True)
class PeftLoraConfig:
    """The fields of a PEFT LoRA configuration that matter once it is trained.

    `tokens` are the trained ones by the name of their layer; an empty name is the embedding, whatever it is called.

    `fan_in_fan_out` is not among them: PEFT itself sets it to False on `nn.Linear`, and A and B are stored alike.
    """

    r: int
    lora_alpha: float
    use_rslora: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    targets: TargetSelection
    ensure_weight_tying: bool
    saved: tuple[str, ...]
    tokens: Mapping[str, tuple[int, ...]]
    base_model: str | None

    @classmethod
    def from_peft_dict(
        cls, config: Mapping[str, Any], *, family: str, module_names: Collection[str] = ()
    ) -> PeftLoraConfig:
        """Convert the contents of `adapter_config.json` for a base with the modules `module_names`; `family` decides
        what `target_modules: null` means.

        Raises `AdapterError` with every problem, each with the field as its `where`.
        """
        problem = refused_type(config["peft_type"]) if "peft_type" in config else None
        if problem is not None:
            raise AdapterError(problem)
        problems = [*refused_fields(config, module_names).values(), *malformed_fields(config)]
        targets = config.get("target_modules")
        if targets is None and "target_modules" in config:
            targets = DEFAULT_TARGETS.get(family)
            if targets is None:
                problems.append(_no_default(family))
        if problems or targets is None:
            raise AdapterError(problems)
        return cls(
            r=config["r"],
            lora_alpha=config["lora_alpha"],
            use_rslora=bool(config.get("use_rslora")),
            rank_pattern=config.get("rank_pattern") or {},
            alpha_pattern=config.get("alpha_pattern") or {},
            targets=TargetSelection(
                target_modules=_text_or_tuple(targets),
                exclude_modules=_text_or_tuple(config.get("exclude_modules") or ()),
                layers_to_transform=_number_or_tuple(config.get("layers_to_transform")),
                layers_pattern=_tuple(config.get("layers_pattern") or ()),
            ),
            ensure_weight_tying=bool(config.get("ensure_weight_tying")),
            saved=_without(_tuple(config.get("modules_to_save") or ()), absent_heads(config, module_names)),
            tokens=_tokens(config.get("trainable_token_indices")),
            base_model=config.get("base_model_name_or_path") or None,
        )

    def rank(self, module: str) -> int:
        """Return the rank PEFT gives `module`."""
        return self.rank_pattern.get(pattern_key(self.rank_pattern, module), self.r)

    def scaling(self, module: str) -> float:
        """Return `alpha / r`, or `alpha / sqrt(r)` with rsLoRA (peft/tuners/lora/layer.py, `update_layer`)."""
        alpha = self.alpha_pattern.get(pattern_key(self.alpha_pattern, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def load_config(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the JSON object in `path` and the bytes it was read from; raises `AdapterError`."""
    remedy = "An adapter is its weights and its adapter_config.json: give both."
    try:
        data = read_regular(path, CONFIG, AdapterError)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise AdapterError("There is no such file.", where=str(path), remedy=remedy) from error
    except OSError as error:
        raise StorageError(f"Cannot read the file: {error}.", where=str(path)) from error
    if is_pointer(data):
        raise AdapterError(told(path))
    try:
        config = parse_json(data)
    except ValueError as error:
        raise AdapterError(f"This is not JSON: {error}.", where=str(path), remedy="Copy the file again.") from error
    if not isinstance(config, dict):
        raise AdapterError("This is not a PEFT configuration: it holds no JSON object.", where=str(path))
    return config, data


def _no_default(family: str) -> Problem:
    return Problem(
        what=f"It names no target modules, and peft has no default for models of family {family!r}",
        where="target_modules",
        remedy="Set target_modules to the modules that were trained.",
    )


def _tokens(value: list[int] | dict[str, list[int]] | None) -> Mapping[str, tuple[int, ...]]:
    named = value if isinstance(value, dict) else {"": value or []}
    return {name: tuple(ids) for name, ids in named.items() if ids}


def _tuple(value: str | list[str] | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _without(names: tuple[str, ...], absent: Collection[str]) -> tuple[str, ...]:
    return tuple(name for name in dict.fromkeys(names) if name not in absent)


def _text_or_tuple(value: str | list[str] | tuple[str, ...]) -> str | tuple[str, ...]:
    return value if isinstance(value, str) else tuple(value)


def _number_or_tuple(value: int | list[int] | None) -> int | tuple[int, ...] | None:
    return tuple(value) if isinstance(value, list) else value
