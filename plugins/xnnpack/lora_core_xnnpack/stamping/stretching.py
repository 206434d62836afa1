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
    reach: int
    """How many elements before that copy have their like a unit later as well: where a unit begins is a convention."""


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
    def derive(cls, name: str, shallow: Elements, deeper: Sequence[Elements], *, repeats: int, detail: int) -> Stretch:
        """Derive from the `shallow` list and, for each run of layers, that with one more unit of it.

        `repeats` says how often the unit of each run is in the shallow model, and `detail` how many hints must agree
        for entries to be taken for copies of one another. Raises `NotStampableError` naming the list (`name`) if what
        is new is no repetition of what was there.
        """
        numbered: dict[object, int] = {}
        entries, *more = (
            [numbered.setdefault(each.likeness(detail), len(numbered)) for each in some] for some in (shallow, *deeper)
        )
        found: list[tuple[Insertion, ...]] = []
        for longer in more:
            inserted = insertions(entries, longer)
            if inserted is None:
                raise NotStampableError(f"what one more layer adds to the {name} is no repetition of what is there")
            found.append(inserted)
        placed = [_own_place(each, found[number + 1 :], more[number], repeats) for number, each in enumerate(found)]
        return cls(shallow=shallow, runs=tuple(_run(shallow, *each) for each in zip(deeper, placed, strict=True)))

    def predict(self, more: Sequence[int], values: Stretch | None = None) -> Elements:
        """Return the list with `more[i]` more units of run `i` than the shallow one has.

        With the list of `values`, what a copy refers to goes where that list puts it. It need not go on by a constant:
        the second layer reads the embedding where others read the layer before them.
        """
        places = None if values is None else _Places.of(values, more)
        result: list[Element] = []
        growth = [
            _total([run.growth[index] for run in self.runs], more, len(element.numbers))
            for index, element in enumerate(self.shallow)
        ]
        for index in range(len(self.shallow) + 1):
            for number, (run, count) in enumerate(zip(self.runs, more, strict=True)):
                section = run.sections.get(index)
                if section is not None:
                    copies = _copies(section, count, run.growth, growth)
                    result += copies if places is None else places.referring(copies, section, number)
            if index < len(self.shallow):
                element = self.shallow[index]
                result.append(attrs.evolve(element, numbers=_sum(element.numbers, growth[index])))
        return tuple(result)


@attrs.frozen(kw_only=True)
class _Inserted:
    """A section in the list with one more unit: where it begins, its length, and how far before it the list repeats
    itself (`left`), `shift` elements after its place in the shallow list; its copies begin at `end` of the predicted.
    """

    left: int
    start: int
    length: int
    shift: int
    end: int


@attrs.frozen(kw_only=True)
class _Places:
    """Where a predicted list has the elements of the shallow one (`kept`), and what each run inserts into it."""

    kept: tuple[int, ...]
    inserted: tuple[tuple[_Inserted, ...], ...]

    @classmethod
    def of(cls, stretch: Stretch, more: Sequence[int]) -> _Places:
        kept: list[int] = []
        inserted: list[list[_Inserted]] = [[] for _ in stretch.runs]
        end = 0
        for index in range(len(stretch.shallow) + 1):
            for found, run, count in zip(inserted, stretch.runs, more, strict=True):
                section = run.sections.get(index)
                if section is not None:
                    length = len(section.elements)
                    shift = sum(each.length for each in found)
                    left = section.first + shift - section.reach
                    found.append(_Inserted(left=left, start=index + shift, length=length, shift=shift, end=end))
                    end += count * length
            kept.append(end)
            end += 1
        return cls(kept=tuple(kept), inserted=tuple(map(tuple, inserted)))

    def referring(self, copies: Sequence[Element], section: _Section, run: int) -> list[Element]:
        """Return `copies` of a section of a run, each referring to what belongs to its own unit."""
        made = []
        for number, element in enumerate(copies):
            copy, position = divmod(number, len(section.elements))
            numbers = section.elements[position].numbers[: element.references]
            moved = tuple(self._moved(run, each, copy) for each in numbers)
            made.append(attrs.evolve(element, numbers=moved + element.numbers[element.references :]))
        return made

    def _moved(self, run: int, index: int, copy: int) -> int:
        """Return where the copy number `copy` finds what the first one finds at `index` of the list with one more."""
        shift = 0
        for each in self.inserted[run]:
            if each.left <= index < each.start + each.length:
                index += copy * each.length
                return each.end + index - each.start if index >= each.start else self.kept[index - each.shift]
            if index >= each.start:
                shift += each.length
        return self.kept[index - shift]


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


def _own_place(
    found: Sequence[Insertion], later: Sequence[Sequence[Insertion]], longer: Sequence[object], repeats: int
) -> list[Insertion]:
    """Return what a run inserts, before what the `later` ones have where they insert at the same place.

    Layers of several runs can have equal entries, as those of norms are; then each run's are found behind all of them.
    """
    placed: list[Insertion] = []
    for each in found:
        behind = repeats * sum(other.length for run in later for other in run if other.before == each.before)
        placed.append(each.earlier(behind, longer, end=placed[-1].before if placed else 0))
    return placed


def _run(shallow: Elements, deeper: Elements, found: Sequence[Insertion]) -> _Run:
    growth: list[Numbers] = []
    for index, element in enumerate(shallow):
        shift = sum(each.length for each in found if each.before <= index)
        growth.append(_difference(deeper[index + shift].numbers, element.numbers))
    ends = [0, *(each.start + each.length for each in found)]
    sections = {each.before: _section(each, deeper, end) for each, end in zip(found, ends, strict=False)}
    return _Run(growth=tuple(growth), sections=sections)


def _section(insertion: Insertion, deeper: Elements, end: int) -> _Section:
    """Return what is inserted; the section before it is inserted up to `end`."""
    start, length = insertion.start, insertion.length
    elements, before = deeper[start : start + length], deeper[start - length : start]
    steps = tuple(_difference(a.numbers, b.numbers) for a, b in zip(elements, before, strict=True))
    left = start - length
    while left > end and deeper[left - 1].kind == deeper[left - 1 + length].kind:
        left -= 1
    return _Section(elements=elements, steps=steps, first=insertion.before - length, reach=start - length - left)


def _difference(a: Numbers, b: Numbers) -> Numbers:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _sum(a: Numbers, b: Numbers) -> Numbers:
    return tuple(x + y for x, y in zip(a, b, strict=True))


def _total(parts: Sequence[Numbers], factors: Sequence[int], length: int) -> Numbers:
    return tuple(
        sum(part[index] * factor for part, factor in zip(parts, factors, strict=True)) for index in range(length)
    )
