"""A lowered program as lists of elements: what repeats with every layer, and the numbers that go on from one to the
next.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import attrs

_LAYER = re.compile(r"(?<![^.])\d+(?![^.])")


class NotStampableError(Exception):
    """A program cannot be derived from those of fewer layers; the text says why."""


class TooFewLayersError(NotStampableError):
    """The whole model is lowered as soon as the shallow ones that would tell how its layers repeat."""


@attrs.frozen(kw_only=True)
class Element:
    """One entry of a list of a program.

    `kind` is what is the same in every layer. `numbers` are what differs: indices, offsets, the numbers of layers in
    names; the first `references` of them are places in the method's list of values. `hints` tell entries apart that
    look alike; they are no part of the program.
    """

    kind: object
    numbers: tuple[int, ...] = ()
    hints: tuple[object, ...] = attrs.field(default=(), eq=False)
    references: int = 0

    def likeness(self, detail: int) -> object:
        """Return what the entry has in common with its copies in other layers, `detail` hints included."""
        return self.kind, self.hints[:detail]


Elements = tuple[Element, ...]
Lists = Mapping[str, Elements]
"""All lists of a program, by name."""


def split_numbers(path: str) -> tuple[str, tuple[int, ...]]:
    """Return a dotted path with `#` for each part that is a number, and these numbers."""
    return _LAYER.sub("#", path), tuple(int(number) for number in _LAYER.findall(path))


def join_numbers(path: str, numbers: Sequence[int]) -> str:
    """Return the path that `split_numbers` took apart."""
    remaining = iter(numbers)
    return ".".join(str(next(remaining)) if part == "#" else part for part in path.split("."))
