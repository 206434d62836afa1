"""Sizes in configurations: positive integers, or a problem that says what stands there instead."""

from __future__ import annotations

from typing import TypeGuard

from lora_core.errors import Problem


def is_size(value: object) -> TypeGuard[int]:
    """Return whether `value` is a positive integer."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def not_a_size(field: str, value: object, where: str) -> Problem:
    """Return the problem of `field` with a `value` that is no size."""
    said = "is missing" if value is None else f"is {value!r}"
    return Problem(what=f"{field} {said}; it must be a positive integer", where=f"{where}: {field}")
