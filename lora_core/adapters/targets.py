"""Which modules a PEFT configuration targets.

A transcription of peft 0.21.2: `check_target_module_exists`, `_maybe_include_all_linear_layers` and
`_find_minimal_target_modules` (peft/tuners/tuners_utils.py), `get_pattern_key` (peft/utils/other.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache

import attrs

from lora_core.intake.patterns import compiled, matching
from lora_core.layers import LayerInfo

ALL_LINEAR = "all-linear"

# where PEFT puts a key of `rank_pattern` or `alpha_pattern`, and a `layers_pattern`
NAME_END = r"(.*\.)?({})$"
LAYER_INDEX = r"(?:^|.*?\.){}\.(?P<idx>\d+)\."

# peft/utils/constants.py: target lists at least this long are condensed to suffixes before matching
_CONDENSED_FROM = 20

# peft/utils/constants.py, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING: what `target_modules: null` means
DEFAULT_TARGETS = {
    "llama": ("q_proj", "v_proj"),
    "mistral": ("q_proj", "v_proj"),
    "qwen2": ("q_proj", "v_proj"),
    "qwen3": ("q_proj", "v_proj"),
}


@attrs.frozen(kw_only=True)
class TargetSelection:
    """The fields of a PEFT configuration that choose modules. A string is a regular expression (or `all-linear`) that
    must match the whole name, a tuple lists names or their last parts.
    """

    target_modules: str | tuple[str, ...]
    exclude_modules: str | tuple[str, ...] = ()
    layers_to_transform: int | tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()

    def select(self, module_names: Sequence[str], layers: Iterable[LayerInfo]) -> tuple[str, ...]:
        """Return the targeted names among `module_names`, in their order; raises `re.error` for a bad expression."""
        if isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR:
            linear = tuple(layer.name for layer in layers if layer.kind == "linear" and not layer.is_output)
            return attrs.evolve(self, target_modules=linear).select(module_names, ())
        return _selected(self, tuple(module_names))

    def unknown(self, module_names: Sequence[str]) -> tuple[str, ...]:
        """Return the listed targets if none of them names a module.

        PEFT takes a list of which some do: it is written for several models at once (`in_proj`, `qkv_proj`), and what
        was trained of this one is what has tensors.
        """
        if isinstance(self.target_modules, str):
            return ()
        known = _endings(tuple(module_names))
        return () if known.intersection(self.target_modules) else tuple(self.target_modules)

    def _selected(self, names: Sequence[str]) -> tuple[str, ...]:
        if isinstance(self.target_modules, str):
            matched = matching(self.target_modules, names)
            return self._without_excluded([name for name in names if name in matched])
        targets = frozenset(self.target_modules)
        if len(targets) >= _CONDENSED_FROM:
            targets = _condensed(targets, names)
        return self._without_excluded([name for name in names if self._listed(name, targets)])

    def _without_excluded(self, names: Sequence[str]) -> tuple[str, ...]:
        if isinstance(self.exclude_modules, str):
            excluded = matching(self.exclude_modules, names) if self.exclude_modules else frozenset()
            return tuple(name for name in names if name not in excluded)
        listed = frozenset(self.exclude_modules)
        return tuple(name for name in names if not _is_or_ends(name, listed))

    def _listed(self, name: str, targets: Collection[str]) -> bool:
        if name in targets:  # a full name is never filtered by layer
            return True
        if not _is_or_ends(name, targets):
            return False
        layers = self.layers_to_transform
        if layers is None or layers == ():
            return True
        index = self._layer_index(name)
        return index is not None and (index == layers if isinstance(layers, int) else index in layers)

    def _layer_index(self, name: str) -> int | None:
        """Return the first number that is a whole part of the name, after `layers_pattern` if there is one."""
        if not self.layers_pattern:
            match = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", name)
            return int(match["idx"]) if match else None
        for pattern in self.layers_pattern:
            match = compiled(LAYER_INDEX.format(pattern)).match(name)
            if match is not None:
                return int(match["idx"])
        return None


# What thousands of adapters have in common: the modules of their base, and most configurations.
@lru_cache(maxsize=64)
def _selected(selection: TargetSelection, module_names: tuple[str, ...]) -> tuple[str, ...]:
    return selection._selected([name for name in module_names if name])


@lru_cache(maxsize=16)
def _endings(module_names: tuple[str, ...]) -> frozenset[str]:
    return frozenset(end for name in module_names for end in _suffixes(name))


def pattern_key(patterns: Iterable[str], name: str) -> str:
    """Return the first key of a `rank_pattern` or `alpha_pattern` that matches the end of `name`, else `name`."""
    for pattern in patterns:
        if compiled(NAME_END.format(pattern)).match(name):
            return pattern
    return name


def parse_targets(text: str) -> str | tuple[str, ...]:
    """Read `--targets`: `all-linear`, a comma-separated list of names or last parts, else a regular expression."""
    if text.strip().lower() == ALL_LINEAR:
        return ALL_LINEAR
    if re.fullmatch(r"[\w.,\s-]+", text):
        return tuple(part for part in re.split(r"[,\s]+", text) if part)
    return text


def _is_or_ends(name: str, targets: Collection[str]) -> bool:
    """Say whether one of `targets` (a set) is `name` or its last parts."""
    return any(end in targets for end in _suffixes(name))


def _condensed(targets: frozenset[str], names: Sequence[str]) -> frozenset[str]:
    """Return the fewest suffixes that separate `targets` from the other names, as PEFT does for long lists.

    It matters for the result: a suffix is filtered by `layers_to_transform`, a full name is not.
    """
    others = {suffix for name in names if not _is_or_ends(name, targets) for suffix in _suffixes(name)}
    required: set[str] = set()
    for suffixes in sorted(_suffixes(target) for target in targets):
        for suffix in suffixes:
            if suffix in required or suffix in others:
                continue
            if not any(end in required for end in suffixes[:-1]):
                required.add(suffix)
                break
    return frozenset(required) if required and len(required) < len(targets) else targets


@lru_cache(maxsize=1 << 14)
def _suffixes(name: str) -> tuple[str, ...]:
    """Return the endings of a name that begin at a dot, the shortest first, and the name."""
    parts = name.split(".")
    return tuple(".".join(parts[start:]) for start in reversed(range(len(parts))))
