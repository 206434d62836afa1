"""Replace attributes for a while and put back exactly what was there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

_ABSENT = object()


class Patches:
    """The replacements of one `with` block; whatever happens, leaving its stack undoes them in reverse order."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def replace(self, owner: Any, name: str, replacement: Any) -> Any:
        """Set `owner.name` to `replacement` and return what `getattr` gave before.

        An attribute that `owner` only inherited is deleted again, not written down, when the block ends.
        """
        before = getattr(owner, name)
        own = vars(owner).get(name, _ABSENT)  # keeps staticmethod and property objects whole
        setattr(owner, name, replacement)
        self.undo(lambda: delattr(owner, name) if own is _ABSENT else setattr(owner, name, own))
        return before

    def add(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute that `owner` does not have; it is deleted again when the block ends."""
        setattr(owner, name, value)
        self.undo(lambda: delattr(owner, name))

    def undo(self, action: Callable[[], None]) -> None:
        """Call `action` when the block ends."""
        self._stack.callback(action)
