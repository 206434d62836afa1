"""Folded names: tensors that differ only in their layer number, stored as one stacked tensor.

`layers.{0-2,5}.self_attn.q_proj.lora_a.weight` stands for the tensors of layers 0, 1, 2 and 5, stacked in that order
along a new first axis. A section of a 30-layer model so needs a dozen header entries instead of hundreds, which is what
keeps its overhead small. Names without a layer number stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lora_core.intake.limits import TENSORS, raised

Array = npt.NDArray[Any]
_LAYER = re.compile(r"^layers\.(\d+)\.(.+)$")
_FOLDED = re.compile(r"^layers\.\{([0-9,-]+)\}\.(.+)$")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key that orders `layers.2` before `layers.10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts)


def fold(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Stack the tensors of layers that share the rest of their name, shape and type."""
    groups: dict[tuple[str, str, tuple[int, ...]], dict[int, Array]] = {}
    folded: dict[str, Array] = {}
    for name, array in tensors.items():
        match = _LAYER.match(name)
        if match is None:
            folded[name] = array
        else:
            key = (match[2], array.dtype.str, array.shape)
            groups.setdefault(key, {})[int(match[1])] = array
    for (rest, _, _), layers in groups.items():
        numbers = sorted(layers)
        folded[f"layers.{{{_runs(numbers)}}}.{rest}"] = np.stack([layers[number] for number in numbers])
    return folded


def unfold(folded: Mapping[str, Array]) -> dict[str, Array]:
    """Return the single tensors, as views; ValueError for a name that does not match its first axis, and for more
    tensors than are read of one file: a tensor without elements has as many rows as its file says.
    """
    tensors: dict[str, Array] = {}
    left = raised(TENSORS)
    for name, array in folded.items():
        match = _FOLDED.match(name)
        if match is None:
            tensors[name] = array
            continue
        named = _count(match[1])
        if array.ndim == 0 or named != array.shape[0]:
            raise ValueError(f"{name} names {named} layers, its tensor has shape {array.shape}")
        left -= named
        if left < 0:
            raise ValueError(f"its names stand for more than {raised(TENSORS)} tensors")
        numbers = _numbers(match[1])
        for index, number in enumerate(numbers):
            tensors[f"layers.{number}.{match[2]}"] = array[index]
    return tensors


def _runs(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _count(runs: str) -> int:
    """Return how many numbers `runs` stands for without making them: a name may say `0-999999999`."""
    ends = [run.partition("-") for run in runs.split(",")]
    return sum(max(0, int(last or first) - int(first) + 1) for first, _, last in ends)


def _numbers(runs: str) -> list[int]:
    numbers: list[int] = []
    for run in runs.split(","):
        first, _, last = run.partition("-")
        numbers.extend(range(int(first), int(last or first) + 1))
    return numbers
