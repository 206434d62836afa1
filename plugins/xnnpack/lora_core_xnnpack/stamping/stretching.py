"""Continue lists of a program: from few layers, and one more of each kind, to any number."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from lora_core_xnnpack.stamping.alignment import Insertion, insertions
from lora_core_xnnpack.stamping.elements import Element, Elements, NotStampableError

Numbers = tuple[int, ...]


@attrs.frozen(kw_only=True)
class _Section:
    """What one more unit of a run inserts before an element of the shallow list: a copy of what stands before it.

    `steps` is by how much each number differs from the copy before it.
    """

    elements: Elements
    steps: tuple[Numbers, ...]
    first: int
    """The copy before it, in the shallow list: where it begins."""


@attrs.frozen(kw_only=True)
class _Run:
    """What one more unit of a run changes: `growth` of every number of the shallow list, and `sections` by place."""

    growth: tuple[Numbers, ...]
    sections: dict[int, _Section]


@attrs.frozen(kw_only=True)
class Stretch:
    """A list of a program as a function of how often each run of layers repeats."""

    shallow: Elements
    runs: tuple[_Run, ...]

    @classmethod
    def derive(cls, name: str, shallow: Elements, deeper: Sequence[Elements], *, detail: int) -> Stretch:
        """Derive from the `shallow` list and, for each run of layers, that with one more unit of it.

        `detail` says how many hints must agree for entries to be taken for copies of one another. Raises
        `NotStampableError` naming the list (`name`) if what is new is no repetition of what was there.
        """
        return cls(shallow=shallow, runs=tuple(_run(name, shallow, each, detail) for each in deeper))

    def predict(self, more: Sequence[int]) -> Elements:
        """Return the list with `more[i]` more units of run `i` than the shallow one has."""
        result: list[Element] = []
        growth = [
            _total([run.growth[index] for run in self.runs], more, len(element.numbers))
            for index, element in enumerate(self.shallow)
        ]
        for index in range(len(self.shallow) + 1):
            for run, count in zip(self.runs, more, strict=True):
                section = run.sections.get(index)
                if section is not None:
                    result += _copies(section, count, run.growth, growth)
            if index < len(self.shallow):
                element = self.shallow[index]
                result.append(attrs.evolve(element, numbers=_sum(element.numbers, growth[index])))
        return tuple(result)


def _copies(section: _Section, count: int, own: Sequence[Numbers], growth: Sequence[Numbers]) -> list[Element]:
    made = []
    for copy in range(count):
        for position, (element, step) in enumerate(zip(section.elements, section.steps, strict=True)):
            # `element` is in the list with one more unit of this run already: `own` is in its numbers once.
            index = section.first + position
            numbers = tuple(
                number + copy * each + grown - once
                for number, each, grown, once in zip(element.numbers, step, growth[index], own[index], strict=True)
            )
            made.append(attrs.evolve(element, numbers=numbers))
    return made


def _run(name: str, shallow: Elements, deeper: Elements, detail: int) -> _Run:
    numbered: dict[object, int] = {}
    found = insertions(
        *([numbered.setdefault(each.likeness(detail), len(numbered)) for each in some] for some in (shallow, deeper))
    )
    if found is None:
        raise NotStampableError(f"what one more layer adds to the {name} is no repetition of what is there")
    growth: list[Numbers] = []
    for index, element in enumerate(shallow):
        shift = sum(each.length for each in found if each.before <= index)
        growth.append(_difference(deeper[index + shift].numbers, element.numbers))
    return _Run(growth=tuple(growth), sections={each.before: _section(each, deeper) for each in found})


def _section(insertion: Insertion, deeper: Elements) -> _Section:
    start, length = insertion.start, insertion.length
    elements, before = deeper[start : start + length], deeper[start - length : start]
    steps = tuple(_difference(a.numbers, b.numbers) for a, b in zip(elements, before, strict=True))
    return _Section(elements=elements, steps=steps, first=insertion.before - length)


def _difference(a: Numbers, b: Numbers) -> Numbers:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _sum(a: Numbers, b: Numbers) -> Numbers:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _total(parts: Sequence[Numbers], factors: Sequence[int], length: int) -> Numbers:
    return tuple(
        sum(part[index] * factor for part, factor in zip(parts, factors, strict=True)) for index in range(length)
    )
