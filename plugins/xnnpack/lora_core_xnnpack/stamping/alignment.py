"""Where a list of a deeper model has more elements than that of a shallower one."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

_NEVER = 1 << 30


@attrs.frozen(kw_only=True)
class Insertion:
    """`length` elements of the longer list, from `start` there, stand before the element `before` of the shorter."""

    before: int
    start: int
    length: int

    def earlier(self, count: int, longer: Sequence[object], end: int) -> Insertion:
        """Return it `count` elements earlier, if that makes the same longer list and what it copies begins at `end` or
        behind; else itself.
        """
        begin = self.start - count
        if self.before - count - self.length < end:
            return self
        if longer[begin : self.start] != longer[begin + self.length : self.start + self.length]:
            return self
        return Insertion(before=self.before - count, start=begin, length=self.length)


def insertions(shorter: Sequence[object], longer: Sequence[object]) -> tuple[Insertion, ...] | None:
    """Return the fewest insertions that make `shorter` into `longer`, each as late as possible; None if none do.

    What is inserted is a copy of as many elements right before it, which are of `shorter`.
    """
    extra = len(longer) - len(shorter)
    if extra < 0:
        return None
    repeated = _repetitions(longer, extra)
    costs = _costs(shorter, longer, extra, repeated)
    if costs[0][0] >= _NEVER:
        return None
    found: list[Insertion] = []
    index = shift = 0
    while index < len(shorter) or shift < extra:
        cost = costs[index][shift]
        if index < len(shorter) and shorter[index] == longer[index + shift] and costs[index + 1][shift] == cost:
            index += 1
            continue
        length = next(each for each in repeated[index + shift] if costs[index][shift + each] + 1 == cost)
        found.append(Insertion(before=index, start=index + shift, length=length))
        shift += length
    ends = [0, *(each.before for each in found)]
    if any(each.before - each.length < end for each, end in zip(found, ends, strict=False)):
        return None
    return tuple(found)


def _repetitions(longer: Sequence[object], extra: int) -> list[list[int]]:
    """Return for each place the lengths, up to `extra`, of which as many elements behind it equal those before it."""
    result: list[list[int]] = [[] for _ in range(len(longer) + 1)]
    for length in range(1, extra + 1):
        equal = 0
        for place in range(len(longer) - 1, length - 1, -1):
            equal = equal + 1 if longer[place] == longer[place - length] else 0
            if equal >= length:
                result[place].append(length)
    return result


def _costs(
    shorter: Sequence[object], longer: Sequence[object], extra: int, repeated: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Return how many insertions follow each place: by index in `shorter` and the number of elements inserted before.

    Places with two insertions at once are left out.
    """
    count = len(shorter)
    costs = [[_NEVER] * (extra + 1) for _ in range(count + 1)]
    for index in range(count, -1, -1):
        row, matched = costs[index], [_NEVER] * (extra + 1)
        for shift in range(extra + 1):
            if index == count:
                matched[shift] = 0 if shift == extra else _NEVER
            elif shorter[index] == longer[index + shift]:
                matched[shift] = costs[index + 1][shift]
        for shift in range(extra + 1):
            reached = [matched[shift + each] + 1 for each in repeated[index + shift] if shift + each <= extra]
            row[shift] = min([matched[shift], *reached])
    return costs
