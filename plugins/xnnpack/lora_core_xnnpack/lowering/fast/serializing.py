"""Ask a dataclass for the types of its fields once."""

from __future__ import annotations

import functools
import typing

from lora_core_xnnpack.lowering.fast.patching import Patches


def know_fields(patches: Patches) -> None:
    """Remember the types of a dataclass's fields.

    ExecuTorch 1.5.1 (`exir/_serialize/_dataclass.py`) evaluates all annotations of a class again for each field of each
    object that it writes: a sixth of what delegating a layer took. Drop when it remembers them.
    """
    from executorch.exir._serialize import _dataclass

    patches.replace(_dataclass, "get_type_hints", functools.cache(typing.get_type_hints))
