"""Lowered methods as lists of items, so that what repeats in them can be told from what counts on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import attrs

# Numbers that read back as they were written: none begins with a zero.
_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)(?:0|[1-9]\d*)(?!\d)")
_HOLE = "\0"


class NotDerivableError(Exception):
    """A model or a method is not what stamping can derive; the text says what and why."""


@attrs.frozen(kw_only=True, slots=False)
class Item:
    """One entry of a list: JSON text whose numbers may count on, and bytes that must repeat as they are.

    `layer` is the layer that the item names (None: none).
    """

    text: str
    opaque: bytes = b""
    layer: int | None = None

    @cached_property
    def mask(self) -> tuple[str, bytes]:
        """What must be equal for two items to be of one kind: everything but the numbers in the text."""
        return _NUMBER.sub(_HOLE, self.text), self.opaque

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The numbers in the text."""
        return tuple(map(int, _NUMBER.findall(self.text)))

    @property
    def value(self) -> Any:
        """The JSON value of the text."""
        return json.loads(self.text)

    def with_numbers(self, numbers: Sequence[int], layer: int | None) -> Item:
        """Return the item with other numbers, in another layer."""
        given = iter(numbers)
        text = _NUMBER.sub(lambda _: str(next(given)), self.text)
        return Item(text=text, opaque=self.opaque, layer=layer)


Document = Mapping[str, Sequence[Item]]
"""The lists of a method, by name."""


def item(value: Any, *, opaque: bytes = b"", layer: int | None = None) -> Item:
    """Return an item of a JSON value."""
    return Item(text=json.dumps(value), opaque=opaque, layer=layer)


def compared(document: Document) -> Mapping[str, list[tuple[str, bytes]]]:
    """Return what two documents must have in common to be the same method."""
    return {name: [(each.text, each.opaque) for each in items] for name, items in document.items()}
