"""A job's lowered programs without weights: from the cache, or lowered from stand-ins."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import attrs

from lora_core.backend import ExportJob
from lora_core.errors import LoraCoreError
from lora_core.events import Emit, Noted, stage
from lora_core.models.base import BaseModel
from lora_core.template_cache.kept import Keepable
from lora_core_xnnpack.artifacts import FOUNDATION_FILE
from lora_core_xnnpack.cache.origins import BaseTensor, DependsOnWeightsError
from lora_core_xnnpack.cache.place import place
from lora_core_xnnpack.files.named_blobs import NamedBlob
from lora_core_xnnpack.lowering.base import outlined
from lora_core_xnnpack.stamping.elements import NotStampableError, TooFewLayersError
from lora_core_xnnpack.streaming.base import StreamedBase
from lora_core_xnnpack.streaming.foundation import fill_foundation
from lora_core_xnnpack.streaming.stand_in import stand_in

if TYPE_CHECKING:
    from lora_core_xnnpack.stamping.shallow import LayeredBase


class Weightless(Keepable, Protocol):
    """Lowered programs without weights; `foundation` is what their foundation file stores."""

    @property
    def foundation(self) -> tuple[BaseTensor, ...]:
        """Every blob in stored order."""
        ...


Kind = TypeVar("Kind", bound=Weightless)

Lower = Callable[[BaseModel, Path], Kind]
"""Lowers a base, may write into a directory that is removed afterwards, and returns the programs without weights."""

Stamp = Callable[["LayeredBase", Emit], Kind]
"""Derives the programs without weights from lowerings of a few layers; raises `NotStampableError`."""


@attrs.frozen(kw_only=True)
class Lowering(Generic[Kind]):
    """The two ways to programs without weights: from a few layers, and from a base of the `whole` depth."""

    stamp: Stamp[Kind]
    whole: Lower[Kind]


def streamed(
    job: ExportJob, kind: type[Kind], lowering: Lowering[Kind], out: Path, emit: Emit
) -> tuple[Kind, tuple[NamedBlob, ...]] | None:
    """Write the foundation file of `job` into `out`; return its programs without weights, and what is stored for them.

    None, and no file, if the base must be held whole: then its source can only give it so, or why is noted.
    """
    with stage(emit, "Build the base without its weights"):
        base = StreamedBase.of(job)
    made = weightless(job, base, kind, lowering, out, emit) if base is not None else None
    if base is None or made is None:
        return None
    with job.options.how_to_round.layers(job.model, base.assignment, out, emit) as layers:
        filled = attrs.evolve(base, rounded=layers)
        blobs = fill_foundation(made.foundation, filled, out / FOUNDATION_FILE, emit)
    return None if blobs is None else (made, blobs)


def weightless(
    job: ExportJob, base: StreamedBase, kind: type[Kind], lowering: Lowering[Kind], out: Path, emit: Emit
) -> Kind | None:
    """Return the programs of `job`, from its cache or lowered from stand-ins; they are kept in the cache.

    Few layers are lowered if the others follow from them; if not, which is noted, the whole depth is.
    None, which is noted, if lowering depends on weights. `out` is where there is room for a directory for a while.
    """
    entry = place(job, base.model)
    kept = entry.read(kind, emit) if entry else None
    if kept is not None:
        emit(Noted(message="The lowered programs are in the cache"))
        return kept
    made = stamped(base, lowering.stamp, emit) or _whole(job, base, lowering.whole, out, emit)
    if entry and made:
        entry.keep(made, emit)
    return made


def stamped(base: StreamedBase, stamp: Stamp[Kind], emit: Emit) -> Kind | None:
    """Return what `stamp` derives from a few layers, None if nothing follows from them, which is noted."""
    from lora_core_xnnpack.stamping.shallow import LayeredBase

    try:
        return stamp(LayeredBase.of(base), emit)
    except TooFewLayersError:
        return None
    except (NotStampableError, DependsOnWeightsError, LoraCoreError) as error:  # a fault of the job's comes again
        emit(Noted(message=f"Every layer is lowered, because the others do not follow from a few: {error}"))
        return None


def _whole(job: ExportJob, base: StreamedBase, lower: Lower[Kind], out: Path, emit: Emit) -> Kind | None:
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
    return made
