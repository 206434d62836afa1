"""Keep Python's cyclic garbage collector from walking millions of live graph nodes again and again."""

from __future__ import annotations

import gc

from lora_core.fast_lowering.patching import Patches


def collect_rarely(patches: Patches) -> None:
    """Raise the collector's thresholds while lowering.

    Graphs are cyclic and nearly all of them stay alive until the end, so young collections find little and full ones
    visit everything.
    """
    before = gc.get_threshold()
    gc.set_threshold(200_000, 50, 1000)
    patches.undo(lambda: gc.set_threshold(*before))
