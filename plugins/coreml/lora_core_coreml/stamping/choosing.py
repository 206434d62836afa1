"""Which few layers to lower, so that a whole model follows and one more depth proves it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import attrs
import numpy as np

from lora_core_coreml.stamping.prediction import Kinds, Vector, counts, role, weights

Layers = tuple[int, ...]
"""Numbers of the model's layers, the first of all first and the last last."""


@attrs.frozen(kw_only=True)
class Chosen:
    """Sequences to lower: `examples` to predict from, and `proof`, which is deeper and must be predicted."""

    examples: tuple[Layers, ...]
    proof: Layers

    @property
    def layers(self) -> int:
        """How many layers are lowered in all."""
        return sum(map(len, (*self.examples, self.proof)))


def choose(kinds: Kinds) -> Chosen | None:
    """Return what to lower for layers of `kinds`; None if that is no less than the model itself."""
    last = len(kinds) - 1
    inner = {kind: number for number, kind in reversed(list(enumerate(kinds))[1:last])}
    shortest = (0, *sorted(inner.values()), last)
    examples = [shortest]
    while len(_followed(examples, kinds)) < len(kinds):
        candidates = [each for each in _longer(shortest, sorted(inner.values())) if each not in examples]
        if not candidates or sum(map(len, examples)) >= len(kinds):
            return None
        examples.append(max(candidates, key=lambda each: _rank([*examples, each], kinds)))
    proof = _proof(kinds, 1 + max(map(len, examples)))
    chosen = Chosen(examples=tuple(examples), proof=proof)
    return chosen if chosen.layers < len(kinds) else None


def among(few: Kinds, more: Kinds) -> Layers | None:
    """Return where layers of the kinds `few` stand among `more`, both ends at the ends; None if they do not."""
    places = [0]
    for kind in few[1:-1]:
        later = [place for place in range(places[-1] + 1, len(more) - 1) if more[place] == kind]
        if not later:
            return None
        places.append(later[0])
    return (*places, len(more) - 1)


def _longer(shortest: Layers, numbers: Sequence[int]) -> Iterator[Layers]:
    for number in numbers:
        for place in range(1, len(shortest)):
            yield (*shortest[:place], number, *shortest[place:])


def _known(examples: Sequence[Layers], kinds: Kinds) -> dict[str, list[Vector]]:
    """Return the vectors that `examples` have for each role."""
    among = sorted(set(kinds[1:-1]))
    known: dict[str, list[Vector]] = {}
    for example in examples:
        own = tuple(kinds[number] for number in example)
        for position in range(-1, len(own)):
            known.setdefault(role(own, position), []).append(counts(own, position, among))
    return known


def _followed(examples: Sequence[Layers], kinds: Kinds) -> list[int]:
    """Return the layers that follow from `examples`; none before the ends do."""
    known, among = _known(examples, kinds), sorted(set(kinds[1:-1]))
    return [
        position
        for position in range(len(kinds))
        if weights(known[role(kinds, position)], counts(kinds, position, among)) is not None
    ]


def _rank(examples: Sequence[Layers], kinds: Kinds) -> int:
    return int(sum(np.linalg.matrix_rank(np.array(vectors)) for vectors in _known(examples, kinds).values()))


def _proof(kinds: Kinds, depth: int) -> Layers:
    """Return a short sequence of at least `depth` layers in which every two kinds meet that meet in the model."""
    layers = tuple(range(len(kinds)))
    shorter = True
    while shorter:
        shorter = False
        for cut in _cuts(layers, kinds, len(layers) - depth):
            if _meetings(cut, kinds) == _meetings(layers, kinds):
                layers, shorter = cut, True
                break
    return layers


def _cuts(layers: Layers, kinds: Kinds, most: int) -> Iterator[Layers]:
    """Yield `layers` without what stands between two of one kind, the longest cut first."""
    inner = range(1, len(layers) - 1)
    spans = [(j - i, i) for i in inner for j in inner if i < j and kinds[layers[i]] == kinds[layers[j]]]
    for length, start in sorted(spans, reverse=True):
        if length <= most:
            yield (*layers[: start + 1], *layers[start + 1 + length :])


def _meetings(layers: Layers, kinds: Kinds) -> set[tuple[object, object]]:
    names: list[object] = ["first", *(kinds[number] for number in layers[1:-1]), "last"]
    return set(pairwise(names))
