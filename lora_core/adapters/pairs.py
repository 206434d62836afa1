"""Pairs of factors that a format found, as updates of the base: what every format but PEFT's own ends with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from lora_core.adapters.adapter import Update
from lora_core.adapters.ordering import natural_key
from lora_core.adapters.peft.spelling import Spelling
from lora_core.errors import Problem
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.tensors import LazyTensor

_ANOTHER = "Was the adapter trained for another base?"


@attrs.frozen(kw_only=True)
class FoundPair:
    """The factors of one module as a file names it: `a` (rank, in_features), `b` (out_features, rank); None: absent.

    Of an `embedding` the rows are its `in_features`.
    """

    written: str
    a: LazyTensor | None
    b: LazyTensor | None
    scaling: float
    embedding: bool = False


def updates_from(
    pairs: Sequence[FoundPair], base: ModelSummary, source: Path
) -> tuple[tuple[Update, ...], tuple[Problem, ...]]:
    """Return the updates of an adapter in natural order, and every problem: they hold only if there is none."""
    layers = {layer.name: layer for layer in base.layers}
    spelling = Spelling.of(base.module_names)
    modules = {pair.written: spelling.module(pair.written) for pair in pairs}
    foreign = [pair.written for pair in pairs if modules[pair.written] not in layers]
    problems = [*_foreign(foreign, base, source)]
    updates: dict[str, Update] = {}
    for pair in sorted(pairs, key=lambda each: natural_key(modules[each.written])):
        module = modules[pair.written]
        if module not in layers:
            continue
        found = [*_misfits(pair, layers[module])]
        if module in updates:
            found.append(f"{pair.written} is a second update of {module}")
        problems += [Problem(what=what, where=f"{source}: {pair.written}", remedy=_ANOTHER) for what in found]
        if not found and pair.a is not None and pair.b is not None:
            updates[module] = Update(module=module, tensors={"a": pair.a, "b": pair.b}, scaling=pair.scaling)
    return tuple(updates.values()), tuple(problems)


def implied_by(pairs: Sequence[FoundPair], name: str) -> ModelSummary:
    """Return a base as far as `pairs` tell it: a layer for each."""
    layers = tuple(
        LayerInfo(
            name=Spelling.of(()).module(pair.written),
            kind="embedding" if pair.embedding else "linear",
            in_features=pair.a.shape[-1],
            out_features=pair.b.shape[0],
            is_output=pair.written.rpartition(".")[2] == "lm_head",
        )
        for pair in sorted(pairs, key=lambda each: natural_key(each.written))
        if pair.a is not None and pair.b is not None and len(pair.a.shape) == len(pair.b.shape) == 2
    )
    return ModelSummary(name=name, family="", layers=layers, module_names=tuple(layer.name for layer in layers))


def _foreign(names: Sequence[str], base: ModelSummary, source: Path) -> Iterator[Problem]:
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = f"It updates {names[0]}{more}, which base model {base.name!r} does not have"
        yield Problem(what=what, where=str(source), remedy=_ANOTHER)


def _misfits(pair: FoundPair, layer: LayerInfo) -> Iterator[str]:
    if layer.kind != "linear":
        yield f"It updates the embedding {layer.name}, which is not supported in this format"
    elif pair.a is None or pair.b is None:
        yield f"{pair.written} has one factor of two"
    elif len(pair.a.shape) != 2 or len(pair.b.shape) != 2:
        yield f"The factors of {pair.written} are no matrices"
    else:
        (rank, inputs), (outputs, other) = pair.a.shape, pair.b.shape
        if rank != other or rank < 1 or (inputs, outputs) != (layer.in_features, layer.out_features):
            size = f"{layer.in_features} features to {layer.out_features}"
            yield f"{pair.written} has {size}, and the factors {inputs} to {rank} and {other} to {outputs}"
