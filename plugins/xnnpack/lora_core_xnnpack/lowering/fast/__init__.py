"""Lower a model faster, without changing one byte of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from lora_core.fast_lowering import PATCHES as GENERAL_PATCHES
from lora_core.fast_lowering import PROVEN_VERSIONS, FastLowering, patched
from lora_core_xnnpack.lowering.fast.affine import know_shapes
from lora_core_xnnpack.lowering.fast.constants import share_constants
from lora_core_xnnpack.lowering.fast.fusion import skip_idle_patterns
from lora_core_xnnpack.lowering.fast.held import leave_where_they_are
from lora_core_xnnpack.lowering.fast.nibbles import pack_at_once
from lora_core_xnnpack.lowering.fast.patching import Patches
from lora_core_xnnpack.lowering.fast.serializing import know_fields
from lora_core_xnnpack.lowering.fast.xnnpack_passes import skip_idle_conversion, skip_idle_passes, warn_of_no_workflow

if TYPE_CHECKING:
    from lora_core_xnnpack.lowering.known import KnownTensors

__all__ = ["PATCHES", "PROVEN_VERSIONS", "FastLowering", "fast_lowering"]

PATCHES: Mapping[str, Callable[[Patches], None]] = {
    **GENERAL_PATCHES,
    "xnnpack passes": skip_idle_passes,
    "callers": warn_of_no_workflow,
    "constants": share_constants,
    "nibbles": pack_at_once,
    "affine": know_shapes,
    "fields": know_fields,
    "idle patterns": skip_idle_patterns,
    "conversion": skip_idle_conversion,
}


@contextmanager
def fast_lowering(only: Collection[str] | None = None, *, known: KnownTensors | None = None) -> Iterator[FastLowering]:
    """Make torch.export and ExecuTorch's passes cheaper inside the block, with byte-identical results.

    `only` names the patches to use (default: all of `PATCHES`). What `known` holds is neither copied nor hashed again.
    On versions other than `PROVEN_VERSIONS` nothing is patched, and the yielded value says so. Everything is put back
    on exit, also after an exception.
    """
    names = tuple(PATCHES) if only is None else tuple(only)
    unknown = [name for name in names if name not in PATCHES]
    if unknown:
        raise ValueError(f"Unknown patches {unknown}. There are {list(PATCHES)}.")
    chosen = {name: PATCHES[name] for name in names}
    if known is not None:
        chosen["known tensors"] = partial(leave_where_they_are, known=known)  # behind those that it wraps
    with patched(chosen, PROVEN_VERSIONS) as state:
        yield state
