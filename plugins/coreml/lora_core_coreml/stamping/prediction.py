"""Predict the lists of a method for any sequence of layers from those for a few.

Each list is a prefix and then passes over the layers in order; in a pass, a layer has a segment. Segments of layers of
one kind repeat, and every number in them is affine in how many layers of each kind stand before and behind. The first
and the last layer are always those of the model: what is done once stands with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import attrs
import numpy as np
import numpy.typing as npt

from lora_core_coreml.stamping.items import Document, Item, NotDerivableError

Kinds = tuple[int, ...]
"""The kind of each layer, first to last; at least three."""

Vector = tuple[int, ...]
# Predictions are whole numbers; float64 gets them this exactly for numbers below 10^9.
_WHOLE = 1e-4


@attrs.frozen
class Example:
    """The lists of a method that was lowered with layers of `kinds`."""

    kinds: Kinds
    document: Document


@attrs.frozen
class _Place:
    """A segment's place: in which pass (-1: before all), as which kind of layer, or as the first or the last."""

    number: int
    role: str


def counts(kinds: Kinds, position: int, among: Sequence[int]) -> Vector:
    """Return (1, layers of each kind before `position`, those behind), the first and the last layer not counted.

    Position -1 stands before all layers.
    """
    inner = kinds[1:-1]
    split = min(max(position - 1, 0), len(inner))
    behind = inner[max(position, 0) :]
    return (1, *(inner[:split].count(kind) for kind in among), *(behind.count(kind) for kind in among))


def role(kinds: Kinds, position: int) -> str:
    """Return as what a layer repeats."""
    if position < 0:
        return "before"
    if position in (0, len(kinds) - 1):
        return "first" if position == 0 else "last"
    return f"kind {kinds[position]}"


def weights(known: Sequence[Vector], wanted: Vector) -> npt.NDArray[np.float64] | None:
    """Return how `wanted` is a combination of `known` vectors, None if it is none."""
    matrix = np.array(known, np.float64).T
    found = np.asarray(np.linalg.lstsq(matrix, np.array(wanted, np.float64), rcond=None)[0], np.float64)
    return found if np.allclose(matrix @ found, wanted, atol=1e-9) else None


def predict(samples: Sequence[Example], kinds: Kinds) -> Document:
    """Return the lists for layers of `kinds`; raises `NotDerivableError` if they do not follow."""
    names = {tuple(sample.document) for sample in samples}
    if len(names) != 1:
        raise NotDerivableError("methods of different depth have different lists")
    return {name: _predict(name, samples, kinds) for name in samples[0].document}


def _predict(name: str, samples: Sequence[Example], kinds: Kinds) -> list[Item]:
    among = sorted({kind for each in (*(s.kinds for s in samples), kinds) for kind in each[1:-1]})
    known: dict[_Place, list[tuple[Vector, list[Item]]]] = {}
    passes = set()
    for sample in samples:
        number = -1
        for place, position, items in _segments(name, sample.document[name], sample.kinds):
            known.setdefault(place, []).append((counts(sample.kinds, position, among), items))
            number = place.number
        passes.add(number)
    if len(passes) != 1:
        raise NotDerivableError(f"{name} goes through the layers {sorted(passes)} times, depending on depth")
    predicted = []
    for number in range(-1, passes.pop() + 1):
        for position in [-1] if number < 0 else range(len(kinds)):
            place = _Place(number, role(kinds, position))
            predicted += _repeat(name, known.get(place, []), counts(kinds, position, among), position)
    return predicted


def _segments(name: str, items: Sequence[Item], kinds: Kinds) -> Iterator[tuple[_Place, int, list[Item]]]:
    """Yield (place, position, items) of every segment; raises `NotDerivableError` for a pass that skips a layer."""
    starts = [0]
    at: list[tuple[int, int]] = [(-1, -1)]
    number, position = -1, len(kinds) - 1
    for index, each in enumerate(items):
        if each.layer is None or (each.layer == position and number >= 0):
            continue
        if each.layer == (position + 1) % len(kinds):
            number += each.layer == 0
            position = each.layer
            starts.append(index)
            at.append((number, position))
            continue
        raise NotDerivableError(f"{name} goes from layer {position} to layer {each.layer}")
    if position != len(kinds) - 1:
        raise NotDerivableError(f"{name} ends with layer {position} of {len(kinds)}")
    for (start, end), (number, position) in zip(pairwise([*starts, len(items)]), at, strict=True):
        yield _Place(number, role(kinds, position)), position, list(items[start:end])


def _repeat(name: str, known: Sequence[tuple[Vector, list[Item]]], wanted: Vector, position: int) -> list[Item]:
    """Return a segment as it follows from `known` ones of its place."""
    if not known:
        raise NotDerivableError(f"{name} has no example of layer {position}")
    first = known[0][1]
    masks = [each.mask for each in first]
    if any([each.mask for each in items] != masks for _, items in known[1:]):
        raise NotDerivableError(f"{name} differs between layers of one kind")
    factors = weights([vector for vector, _ in known], wanted)
    if factors is None:
        raise NotDerivableError(f"{name} has too few examples of layers like {position}")
    table = np.array([[n for each in items for n in each.numbers] for _, items in known], np.float64)
    exact = factors @ table
    whole = np.rint(exact)
    if np.abs(exact - whole).max(initial=0.0) > _WHOLE or whole.min(initial=0.0) < 0:
        raise NotDerivableError(f"{name} has numbers that do not count on evenly")
    return list(_with_numbers(first, whole.astype(np.int64).tolist(), position))


def _with_numbers(items: Sequence[Item], numbers: Sequence[int], position: int) -> Iterator[Item]:
    given = iter(numbers)
    for each in items:
        layer = None if each.layer is None else position
        yield each.with_numbers([next(given) for _ in each.numbers], layer)
