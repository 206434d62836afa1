"""One cause, one message, however many layers an adapter has."""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from lora_core.errors import Problem

# What differs between the tensors of one cause: the module, which of its two matrices, sizes.
_VARIES = re.compile(r"'?[\w-]+(?:\.[\w-]+){2,}'?|\[[\d, ]*\]|(?<=LoRA )[AB]\b")


def grouped(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """Return `problems` with those that differ in module, tensor and sizes alone told once, as the first of them with
    their number; the order is that of the first ones.
    """
    alike: dict[tuple[str, str, str], list[Problem]] = {}
    for problem in problems:
        key = (_VARIES.sub("*", problem.what), problem.where.partition(": ")[0], _VARIES.sub("*", problem.remedy))
        found = alike.setdefault(key, [])
        if problem not in found[-1:]:
            found.append(problem)
    return tuple(_one(found) for found in alike.values())


def _one(problems: list[Problem]) -> Problem:
    first, more = problems[0], len(problems) - 1
    if not more:
        return first
    return attrs.evolve(first, what=f"{first.what.rstrip('.')} (and {more} more like this)")
