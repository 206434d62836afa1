"""Keep Python's cyclic garbage collector from walking millions of live graph nodes again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from lora_core.fast_lowering.patching import Patches


def collect_rarely(patches: Patches) -> None:
    """Raise the collector's thresholds while lowering.

    Graphs are cyclic and nearly all of them stay alive until the end, so young collections find little and full ones
    visit everything.
    """
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    patches.undo(lambda: gc.set_threshold(*before))


@contextmanager
def old_objects_spared() -> Iterator[None]:
    """Have the collector pass over what there is already, for several lowerings in the block.

    A million objects of imported libraries stay anyway. A process that has objects frozen by itself keeps it so.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
