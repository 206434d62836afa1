"""Adapters that change nothing, told when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.kinds import is_zero
from lora_core.events import Warned


def inert(adapters: Iterable[Adapter]) -> Iterator[Warned]:
    """Yield a warning for each adapter that does nothing; it is linked all the same."""
    for adapter in adapters:
        if not is_zero(adapter):
            continue
        if all(update.scaling == 0 for update in adapter.updates):
            why = "its strength or its alpha is 0"
        else:
            why = "each of its updates has a factor that is zero, as B is before a training. Was it saved too early?"
        yield Warned(message=f"Adapter {adapter.name!r} changes nothing: {why} ({adapter.source})")
