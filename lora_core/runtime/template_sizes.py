"""How large what a chat template asks Python for will be, told before it is made.

Sizes are characters, bytes, entries of a list or bits of a number. They are estimates, and rather too large.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sequence, Sized, ValuesView
from itertools import chain
from typing import Any

import attrs

_OTHER = 25
"""Characters of a number with a point, of a constant, of an object's name."""
_QUOTES = 4
"""Characters around what stands in a list: quotes, a comma and a space."""

_WIDTHS = frozenset(("center", "ljust", "rjust", "zfill", "truncate", "to_bytes", "round", "batch", "slice"))
"""What is as long as a number that is given says."""
_PLACES: Mapping[str, Callable[[Any], int]] = {
    "indent": lambda text: len(text.splitlines()) + 1,
    "expandtabs": lambda text: text.count(b"\t" if isinstance(text, bytes) else "\t"),
    "urlize": lambda text: len(text.split()),
    "wordwrap": len,
    "translate": len,
}
"""What puts something that is given at places of a text: how many of these there are."""
_LOOKS = frozenset(
    (
        *("startswith", "endswith", "find", "rfind", "index", "rindex"),
        *("count", "length", "first", "last", "d", "default"),
    )
)
"""What makes no text of a text; so do methods that are called `is...`."""
_TEXTS = frozenset(
    (
        *("capitalize", "e", "escape", "forceescape", "lower", "safe", "string", "striptags", "title", "trim", "upper"),
        *("urlencode", "wordcount", "xmlattr"),
    )
)
"""Filters that make a text of whatever they are given."""
_LISTS = frozenset(("dictsort", "list", "reverse", "sort", "unique"))
HELD = frozenset(("join", "sum")) | _LISTS
"""Filters that take all parts of something."""


@attrs.frozen
class TextExtent:
    """Of a value as text: about how many characters, how many values are in it, how deep they lie."""

    characters: int
    entries: int = 1
    depth: int = 0


def extent(value: Any, seen: dict[int, TextExtent] | None = None) -> TextExtent:
    """Return the extent of `value`; what is in it many times is looked at once."""
    if isinstance(value, str | bytes):
        return TextExtent(len(value))
    if isinstance(value, int):
        return TextExtent(value.bit_length() // 3 + 2)
    inner = _inside(value)
    if inner is None:
        return TextExtent(_OTHER)
    seen = {} if seen is None else seen
    if id(value) not in seen:
        seen[id(value)] = TextExtent(_OTHER)  # of what holds itself Python writes dots
        found = [extent(each, seen) for each in inner]
        seen[id(value)] = TextExtent(
            _OTHER + sum(each.characters + _QUOTES for each in found),
            1 + sum(each.entries for each in found),
            1 + max((each.depth for each in found), default=0),
        )
    return seen[id(value)]


def _inside(value: Any) -> Iterable[Any] | None:
    from jinja2.utils import Namespace

    if isinstance(value, Namespace):
        value = value._Namespace__attrs  # all other names are the template's
    if isinstance(value, Mapping):
        return chain(value, value.values())
    if isinstance(value, ItemsView):
        return chain.from_iterable(value)
    return value if isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView) else None


def of_operator(operator: str, left: Any, right: Any) -> int:
    """Return the size of what `operator` (`+`, `*`, `**`, `%`) makes."""
    if operator == "%":
        return _of_percent(left, right) if isinstance(left, str | bytes) else 0
    sizes = [len(each) if isinstance(each, str | bytes | list | tuple) else 0 for each in (left, right)]
    if operator == "+":
        return sum(sizes)
    numbers = [abs(each) if isinstance(each, int) else 0 for each in (left, right)]
    if operator == "*":
        return max(sizes[0] * numbers[1], sizes[1] * numbers[0], numbers[0].bit_length() + numbers[1].bit_length())
    return numbers[0].bit_length() * numbers[1]


def of_method(name: str, owner: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
    """Return the size of what a method of a text, of bytes or of a number makes.

    A format is counted field by field, as it is written (`template_sandbox.py`).
    """
    if name == "join":
        return _of_join(arguments[0] if arguments else (), [owner])
    return 0 if name.startswith("is") else _of_call(name, owner, arguments, named)


def of_filter(name: str, value: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
    """Return the size of what a filter makes of `value`."""
    given = [*arguments, *named.values()]
    if name == "join":
        return _of_join(value, given)
    if name == "format":
        if _inside(value) is not None:  # a list is no pattern, and its text may be of any size
            return sys.maxsize
        return max(_of_percent(str(value), each) for each in (tuple(arguments), named))
    if name == "sum":  # of lists, if it begins with one; each sum on the way is a list of its own
        lists = any(isinstance(each, list | tuple) for each in given)
        return len(value) * extent(value).entries if lists else 0
    if name in ("tojson", "pprint"):
        found = extent(value)
        return found.characters + found.entries * found.depth * (1 + _most(given))
    if name in _LISTS:
        return len(value) if isinstance(value, Sized) else 0
    return extent(value).characters if name in _TEXTS else _of_call(name, value, arguments, named)


def _of_call(name: str, value: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
    given = [*arguments, *named.values()]
    if name in _WIDTHS:
        return extent(value).characters + sum(abs(each) for each in given if isinstance(each, int))
    if name == "replace":
        words = dict(zip(("old", "new"), arguments, strict=False)) | dict(named)
        old, characters = words.get("old"), extent(value).characters
        known = isinstance(value, str | bytes) and isinstance(old, bytes if isinstance(value, bytes) else str)
        places = value.count(old) if known else characters + 1
        return characters + places * extent(words.get("new")).characters
    if name in _PLACES:
        characters = extent(value).characters
        places = _PLACES[name](value) if isinstance(value, str | bytes) else characters
        # The width of a line is not what stands at its end.
        return characters + places * _most(each for each in given if name != "wordwrap" or isinstance(each, str))
    return len(value) if isinstance(value, str | bytes) and name not in _LOOKS else 0


def _of_join(parts: Any, given: Sequence[Any]) -> int:
    """Return the size of `parts` with one of `given` between them; each character of a text is a part."""
    count = len(parts) if isinstance(parts, Sized) else 0
    return extent(parts).characters + count * max((extent(each).characters for each in given), default=0)


def _of_percent(pattern: str | bytes, given: Any) -> int:
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    # Behind the sign, or behind a key: flags, a width, a precision. A star takes them from what is given.
    asked = re.findall(r"[%)][-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?", text)
    widths = [each for pair in asked for each in pair if each]
    size = len(text) + sum(int(each) for each in widths if each != "*")
    if "*" in widths:
        size += sum(abs(each) for each in (given if isinstance(given, tuple) else (given,)) if isinstance(each, int))
    if isinstance(given, Mapping):  # a key may be named any number of times
        return size + text.count("%") * max((extent(each).characters for each in given.values()), default=0)
    return size + extent(given).characters


def of_specification(specification: str) -> int:
    """Return the widths that the specification of a format's field asks for."""
    return sum(map(int, re.findall(r"\d+", specification)))


def _most(given: Iterable[Any]) -> int:
    """Return the size of all that is given: a number stands for as many spaces."""
    return sum(abs(each) if isinstance(each, int) else extent(each).characters for each in given)
