"""Map values of one kind in a structure without describing the mapping each time."""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Any

from lora_core.fast_lowering.patching import Patches

Map = Callable[[Any], Any]


def map_without_types(patches: Patches) -> None:
    """Leave out what torch's maps over structures say of themselves, for every call of an operator.

    torch 2.13.0 (`utils/_pytree.py`) makes a function in a function for each, whose annotations Python evaluates, and
    which takes over the name and the documentation of what it calls. Drop when it evaluates none.
    """
    from torch.utils import _pytree as pytree

    theirs = pytree.map_only

    def map_only(kind: Any, /) -> Callable[[Map], Map]:
        if not isinstance(kind, type | tuple | UnionType):
            return theirs(kind)  # type: ignore[no-any-return]

        def wrapper(function: Map) -> Map:
            return lambda value: function(value) if isinstance(value, kind) else value

        return wrapper

    patches.replace(pytree, "map_only", map_only)
