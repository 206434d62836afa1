"""Bundles read while other processes change them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lora_core.bundle.bundle import Bundle
from lora_core.bundle.store import moment, open_bundle
from lora_core.events import Emit

Found = TypeVar("Found")
_PATIENCE = 20
"""How often a bundle may be changed by others while it is read, before what was found is told as it is."""


def undisturbed(
    path: Path,
    emit: Emit,
    read: Callable[[Bundle], Found],
    *,
    whole: Callable[[Found], bool] = lambda _: False,
    forget: Callable[[Found], object] = lambda _: None,
) -> Found:
    """Return what `read` makes of the bundle at `path`.

    Its files are exchanged one after another, so what `read` returns or raises may be of files of two states. If the
    bundle was changed meanwhile, it is read again, unless what was found is `whole`, which no mixture is; what is not
    returned is given to `forget`.
    """
    for _ in range(_PATIENCE):
        before = moment(path)
        bundle = open_bundle(path, emit)
        try:
            found = read(bundle)
        except Exception:
            if before is not None and moment(path) == before:
                raise
        else:
            if whole(found) or (before is not None and moment(path) == before):
                return found
            forget(found)
    return read(open_bundle(path, emit))
