"""Lists of a program continued from a few layers to any number."""

from __future__ import annotations

import pytest
from lora_core_xnnpack.stamping.alignment import Insertion, insertions
from lora_core_xnnpack.stamping.elements import Element, Elements, NotStampableError, join_numbers, split_numbers
from lora_core_xnnpack.stamping.kinds import Run, runs
from lora_core_xnnpack.stamping.stretching import Stretch


def program(first: int, second: int) -> Elements:
    """Return the calls of a model of two runs of layers: each reads what was made before it, the last all layers."""
    made = [Element(kind="input", numbers=(0,))]
    for layer in range(first + second):
        kind = "a" if layer < first else "b"
        made.append(Element(kind=f"{kind} weight", numbers=(layer, 100 * layer)))
        made.append(Element(kind=kind, numbers=(len(made) - 1, first + second)))
    return (*made, Element(kind="output", numbers=(len(made), 3 * first + 5 * second)))


def test_a_list_of_two_runs_is_continued_in_both() -> None:
    stretch = Stretch.derive("calls", program(2, 2), [program(3, 2), program(2, 3)], repeats=2, detail=0)
    assert stretch.predict([9, 12]) == program(11, 14)


def norms(*runs: int) -> Elements:
    """Return what layers of all runs have alike, as norms are: each entry has its place and its run's length."""
    made = [Element(kind="input", numbers=(0, 0))]
    for layers in runs:
        made += [Element(kind="norm", numbers=(len(made) + layer, layers)) for layer in range(layers)]
    return (*made, Element(kind="output", numbers=(len(made), sum(runs))))


@pytest.mark.parametrize("runs", [(2, 2), (2, 2, 2)])
def test_runs_whose_layers_have_equal_entries_are_continued_each_at_its_own_place(runs: tuple[int, ...]) -> None:
    def with_more(count: int, only: int | None = None) -> Elements:
        return norms(*(each + count * (only in (None, number)) for number, each in enumerate(runs)))

    deeper = [with_more(1, number) for number in range(len(runs))]
    stretch = Stretch.derive("norms", with_more(0), deeper, repeats=2, detail=0)
    assert stretch.predict([5] * len(runs)) == with_more(5)


def test_what_is_no_copy_of_what_stands_before_it_is_refused() -> None:
    shallow, deeper = ((Element(kind="a"),), (Element(kind="a"), Element(kind="new")))
    with pytest.raises(NotStampableError, match="the calls is no repetition"):
        Stretch.derive("calls", shallow, [deeper], repeats=1, detail=0)


def test_hints_tell_entries_apart_that_look_alike() -> None:
    def tables(layers: int) -> Elements:
        return tuple(
            Element(kind="table", numbers=(which, layer), hints=(which,))
            for which in range(2)
            for layer in range(layers)
        )

    blind, seeing = (Stretch.derive("tables", tables(2), [tables(3)], repeats=2, detail=detail) for detail in (0, 1))
    assert blind.predict([2]) != tables(4)
    assert seeing.predict([2]) == tables(4)


def test_what_a_layer_reads_of_the_one_before_it_is_that_layers_though_the_first_reads_something_else() -> None:
    def values(layers: int) -> Elements:
        return tuple(Element(kind=kind) for kind in ["embedding", "table", *["weight", "output"] * layers])

    def calls(layers: int) -> Elements:
        reads = [0, *(3 + 2 * layer for layer in range(layers - 1))]
        return tuple(
            Element(kind="layer", numbers=(read, 1, 2 + 2 * layer, 3 + 2 * layer), references=4)
            for layer, read in enumerate(reads)
        )

    stretch = Stretch.derive("calls", calls(1), [calls(2)], repeats=1, detail=0)
    listed = Stretch.derive("values", values(1), [values(2)], repeats=1, detail=0)
    assert stretch.predict([3]) != calls(4)
    assert stretch.predict([3], listed) == calls(4)


def test_insertions_are_copies_as_few_and_as_late_as_possible() -> None:
    assert insertions("xabab", "xababab") == (Insertion(before=5, start=5, length=2),)
    assert insertions("kkvv", "kkkvvv") == (
        Insertion(before=2, start=2, length=1),
        Insertion(before=4, start=5, length=1),
    )
    assert insertions("ab", "acb") is None


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([0] * 12, [(0, 1, 12)]),
        ([0, 0, 0, 1] * 7 + [0, 0], [(0, 4, 7), (28, 1, 1), (29, 1, 1)]),
        ([0] * 20 + [1] * 10, [(0, 1, 20), (20, 1, 10)]),
        ([0, 1, 2], [(0, 1, 1), (1, 1, 1), (2, 1, 1)]),
    ],
)
def test_kinds_of_layers_are_found_as_repetitions(kinds: list[int], expected: list[tuple[int, int, int]]) -> None:
    assert runs(kinds) == tuple(Run(start=start, period=period, repeats=count) for start, period, count in expected)


@pytest.mark.parametrize("path", ["layers.11.attention.wq.weight", "norm.weight", "a.0.b.12", "w1.w2"])
def test_numbers_in_paths_are_taken_out_and_put_back(path: str) -> None:
    assert join_numbers(*split_numbers(path)) == path
