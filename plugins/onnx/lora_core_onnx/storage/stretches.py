"""Stretches of a file: tensors that share bytes in part would be read as often as somebody says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def require_apart(stretches: Sequence[tuple[int, int]]) -> None:
    """Raise `ValueError` if two of the (offset, size) overlap without being the same."""
    for (offset, size), (after, _) in pairwise(sorted(set(stretches))):
        if offset + size > after:
            raise ValueError(f"a tensor of {size} bytes at {offset} overlaps one at {after}")
