"""Typed reading of parsed JSON that collects every problem instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from lora_core.errors import Problem

T = TypeVar("T")


class Problems:
    """Problems found in one file."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.found: list[Problem] = []

    def add(self, field: str, what: str) -> None:
        """Record that `field` (a dotted name) is wrong."""
        self.found.append(Problem(what=f"Field '{field}' {what}", where=f"{self.where}: {field}"))


class Fields:
    """The fields of one JSON object. Each reader returns a neutral value after recording a problem.

    Call `finish` at the end: it records fields that nothing asked for.
    """

    __slots__ = ("_problems", "_unread", "_values", "name")

    def __init__(self, values: object, name: str, problems: Problems) -> None:
        self.name = name
        self._problems = problems
        if not isinstance(values, dict):
            problems.add(name, f"must be an object, not {_kind(values)}.")
            values = {}
        self._values: dict[str, Any] = values
        self._unread = set(self._values)

    def problem(self, key: str, what: str) -> None:
        """Record that the value of `key` is wrong."""
        self._problems.add(self._at(key), what)

    def finish(self) -> None:
        """Record every field that was not read."""
        for key in sorted(self._unread):
            self.problem(key, "is unknown.")

    def text(self, key: str) -> str:
        """Return a string."""
        return self._typed(key, str, "a string", "")

    def optional_text(self, key: str) -> str | None:
        """Return a string or None (null)."""
        return None if self._is_null(key) else self.text(key)

    def text_if_any(self, key: str) -> str | None:
        """Return a string, or None where there is none: null, or no such field."""
        return self.optional_text(key) if key in self._values else None

    def number(self, key: str) -> int:
        """Return an integer that is not negative."""
        value = self._typed(key, int, "an integer", 0)
        if value < 0:
            self.problem(key, "must not be negative.")
            return 0
        return value

    def optional_number(self, key: str) -> int | None:
        """Return an integer that is not negative, or None (null)."""
        return None if self._is_null(key) else self.number(key)

    def flag(self, key: str) -> bool:
        """Return a boolean."""
        return self._typed(key, bool, "true or false", False)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """Return an object as a dict."""
        return self._typed(key, dict, "an object", {})

    def texts(self, key: str) -> tuple[str, ...]:
        """Return an array of strings."""
        values = self._array(key)
        if any(type(value) is not str for value in values):
            self.problem(key, "must hold strings only.")
            return ()
        return tuple(values)

    def text_mapping(self, key: str) -> Mapping[str, str]:
        """Return an object whose values are strings."""
        values = self.mapping(key)
        for name, value in values.items():
            if type(value) is not str:
                self.problem(f"{key}.{name}", f"must be a string, not {_kind(value)}.")
        return {name: value for name, value in values.items() if type(value) is str}

    def numbers(self, key: str) -> tuple[int, ...]:
        """Return an array of integers."""
        values = self._array(key)
        if any(type(value) is not int for value in values):
            self.problem(key, "must hold integers only.")
            return ()
        return tuple(values)

    def object(self, key: str) -> Fields:
        """Return an object's fields; the caller finishes them."""
        return Fields(self.mapping(key), self._at(key), self._problems)

    def optional_object(self, key: str) -> Fields | None:
        """Return an object's fields, which the caller finishes, or None (null)."""
        return None if self._is_null(key) else self.object(key)

    def objects(self, key: str) -> list[Fields]:
        """Return the fields of each object of an array; the caller finishes them."""
        name = self._at(key)
        return [Fields(value, f"{name}[{i}]", self._problems) for i, value in enumerate(self._array(key))]

    def _array(self, key: str) -> list[Any]:
        return self._typed(key, list, "an array", [])

    def _is_null(self, key: str) -> bool:
        if key in self._values and self._values[key] is None:
            self._unread.discard(key)
            return True
        return False

    def _typed(self, key: str, kind: type[T], called: str, neutral: T) -> T:
        self._unread.discard(key)
        if key not in self._values:
            self.problem(key, "is missing.")
            return neutral
        value = self._values[key]
        if type(value) is not kind:  # exact: a bool is an int to isinstance
            self.problem(key, f"must be {called}, not {_kind(value)}.")
            return neutral
        return value

    def _at(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}.get(
        type(value), "an object"
    )
