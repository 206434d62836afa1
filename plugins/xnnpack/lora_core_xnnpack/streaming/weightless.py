"""A job's lowered programs without weights: from the cache, or lowered from stand-ins."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

from lora_core.backend import ExportJob
from lora_core.events import Emit, Noted, stage
from lora_core.models.base import BaseModel
from lora_core_xnnpack.cache.entry import CacheEntry, Kind
from lora_core_xnnpack.cache.origins import DependsOnWeightsError
from lora_core_xnnpack.lowering.base import outlined
from lora_core_xnnpack.streaming.base import StreamedBase
from lora_core_xnnpack.streaming.stand_in import stand_in

Lower = Callable[[BaseModel, Path], Kind]
"""Lowers a base, may write into a directory that is removed afterwards, and returns the programs without weights."""


def streamed(job: ExportJob, emit: Emit) -> StreamedBase | None:
    """Return the base of `job` without its weights, None if its source can only give it whole."""
    with stage(emit, "Build the base without its weights"):
        return StreamedBase.of(job)


def weightless(
    job: ExportJob, base: StreamedBase, kind: type[Kind], lower: Lower[Kind], out: Path, emit: Emit
) -> Kind | None:
    """Return the programs of `job`, from its cache or lowered by `lower` from stand-ins; they are kept in the cache.

    None, which is noted, if lowering depends on weights. `out` is where there is room for a directory for a while.
    """
    entry = CacheEntry.of(job, base.model)
    kept = entry.read(kind, emit) if entry else None
    if kept is not None:
        emit(Noted(message="The lowered programs are in the cache"))
        return kept
    outline = outlined(job)
    assert outline is not None, "a source that gave it once"
    try:
        with tempfile.TemporaryDirectory(prefix=".stand-in-", dir=out) as work:
            made = lower(stand_in(base, outline), Path(work))
    except DependsOnWeightsError as error:
        emit(Noted(message=f"The base is held whole, because its lowered programs depend on its weights: {error}"))
        return None
    del outline
    gc.collect()  # graphs are cyclic, and hold the stand-ins
    if entry:
        entry.keep(made, emit)
    return made
