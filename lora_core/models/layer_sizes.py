"""Blocks of one decoder with sizes of their own, or with keys and values of another, as Gemma 4's fields say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_core.errors import Problem
from lora_core.models.layer_kinds import LayerKind
from lora_core.models.sizes import is_size, not_a_size

_OWN = {"head_dim": "head_dim", "num_key_value_heads": "kv_heads"}
_LISTED = "per_layer_config"


def sized(
    kinds: Sequence[LayerKind], config: Mapping[str, Any], where: str
) -> tuple[tuple[LayerKind, ...], list[Problem]]:
    """Return `kinds` with the sizes and the sharing that `config` asks for, or what stands against it.

    transformers writes the sizes as `per_layer_config`, by the number of the layer; before, `global_head_dim` and
    `num_global_key_value_heads` are those of layers of full attention (`Gemma4TextConfig`).
    """
    own, problems = _own_sizes(kinds, config, where)
    sharing, more = _sharing(kinds, config, where)
    problems += more
    if problems:
        return tuple(kinds), problems
    one_layer = bool(config.get("attention_k_eq_v"))
    found = [
        attrs.evolve(kind, **own.get(index, {}), **sharing.get(index, {}), values_are_keys=one_layer and _is_full(kind))
        for index, kind in enumerate(kinds)
    ]
    return tuple(found), _check_heads(found, config, where)


def _is_full(kind: LayerKind) -> bool:
    return kind.positions == "global"


def _own_sizes(
    kinds: Sequence[LayerKind], config: Mapping[str, Any], where: str
) -> tuple[dict[int, dict[str, Any]], list[Problem]]:
    listed = config.get(_LISTED)
    if listed is None:
        told = {"head_dim": config.get("global_head_dim")}
        if config.get("attention_k_eq_v"):
            told["num_key_value_heads"] = config.get("num_global_key_value_heads")
        told = {name: value for name, value in told.items() if value is not None}
        listed = {index: told for index, kind in enumerate(kinds) if _is_full(kind)}
    if not isinstance(listed, Mapping) or not all(isinstance(each, Mapping) for each in listed.values()):
        return {}, [Problem(what=f"{_LISTED} is no table of layers", where=f"{where}: {_LISTED}")]
    found: dict[int, dict[str, Any]] = {}
    problems = []
    for key, told in listed.items():
        if not str(key).isdecimal() or int(key) >= len(kinds):
            problems.append(Problem(what=f"{_LISTED} names layer {key!r}", where=f"{where}: {_LISTED}"))
            continue
        strange = sorted(told.keys() - _OWN.keys())
        if strange:
            what = f"Layers with {', '.join(map(str, strange))} of their own are not supported"
            problems.append(Problem(what=what, where=f"{where}: {_LISTED}"))
        problems += [not_a_size(name, told[name], where) for name in _OWN if name in told and not is_size(told[name])]
        found[int(key)] = {
            own: told[name] for name, own in _OWN.items() if name in told and told[name] != config.get(name)
        }
    return found, problems


def _sharing(
    kinds: Sequence[LayerKind], config: Mapping[str, Any], where: str
) -> tuple[dict[int, dict[str, Any]], list[Problem]]:
    """Return what the last `num_kv_shared_layers` blocks borrow, and which lend it, by the number of the block."""
    count = config.get("num_kv_shared_layers") or 0
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        return {}, [not_a_size("num_kv_shared_layers", count, where)]
    first = max(0, len(kinds) - count)
    found: dict[int, dict[str, Any]] = {}
    for positions in sorted({kind.positions for kind in kinds[first:]}):
        lenders = [index for index, kind in enumerate(kinds[:first]) if kind.positions == positions]
        if not lenders:
            what = f"num_kv_shared_layers is {count}, which leaves no layer to share with of every type that shares"
            return {}, [Problem(what=what, where=f"{where}: num_kv_shared_layers")]
        found[lenders[-1]] = {"lends": True}
    doubled = 2 * config["intermediate_size"] if config.get("use_double_wide_mlp") else None
    return found | {index: {"borrows": True, "hidden_dim": doubled} for index in range(first, len(kinds))}, []


def _check_heads(kinds: Sequence[LayerKind], config: Mapping[str, Any], where: str) -> list[Problem]:
    problems = []
    for positions in ("global", "local"):
        widths = {(kind.head_dim, kind.kv_heads) for kind in kinds if kind.positions == positions}
        if len(widths) > 1:
            what = f"Layers with {positions} positions have heads of several widths or numbers"
            problems.append(Problem(what=what, where=f"{where}: {_LISTED}"))
    heads = config["num_attention_heads"]
    for kv_heads in sorted({kind.kv_heads for kind in kinds if kind.kv_heads is not None}):
        if heads % kv_heads:
            what = f"num_attention_heads ({heads}) is not a multiple of {kv_heads} heads of keys and values"
            problems.append(Problem(what=what, where=f"{where}: num_key_value_heads"))
    if any(kind.head_dim is not None and kind.head_dim % 2 for kind in kinds):
        problems.append(Problem(what="Rotary embeddings need an even head_dim", where=f"{where}: {_LISTED}"))
    return problems
