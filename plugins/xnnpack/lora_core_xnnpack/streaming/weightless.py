"""A job's lowered programs without weights: from the cache, or lowered from stand-ins."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import ExportJob
from lora_core.errors import LoraCoreError
from lora_core.events import Emit, Noted, stage
from lora_core.fast_lowering import old_objects_spared
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

    @classmethod
    def places(cls, plans: Sequence[SlotPlan]) -> Sequence[Sequence[SlotPlan]]:
        """Return the plans of each part that is kept for itself, the base's first, which all others are lowered for."""
        ...

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the programs that `parts` are the parts of."""
        ...

    def parts(self) -> Sequence[Self]:
        """Return what is kept for itself, in the order of `places`."""
        ...


Kind = TypeVar("Kind", bound=Weightless)


@attrs.frozen(kw_only=True)
class Missing(Generic[Kind]):
    """What is to be lowered: templates of `plans`, and the base's program unless `base` is that."""

    plans: Sequence[SlotPlan]
    base: Kind | None


Lower = Callable[[BaseModel, Path, Missing[Kind]], Kind]
"""Lowers what is missing with a base, may write into a directory that is removed afterwards, and returns it without
weights, with the base's program."""

Stamp = Callable[["LayeredBase", Missing[Kind], Emit], Kind]
"""Derives from lowerings of a few layers what `Lower` returns; raises `NotStampableError`."""


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
    places = kind.places(job.plans)
    entries = [place(job, base.model, plans) for plans in places]
    kept = _fitting([entry.read(kind, emit) if entry else None for entry in entries])
    found = [each for each in kept if each is not None]
    if found:
        which = "" if len(found) == len(kept) else f", but for {len(kept) - len(found)} of {len(kept)}"
        emit(Noted(message=f"The lowered programs are in the cache{which}"))
    if len(found) == len(kept):
        return kind.joined(found)
    wanted = [plan for plans, each in zip(places, kept, strict=True) if each is None for plan in plans]
    missing = Missing(plans=wanted, base=kept[0])
    with old_objects_spared():
        made = stamped(base, missing, lowering.stamp, emit) or _whole(job, base, missing, lowering.whole, out, emit)
    if made is None:
        return None
    lowered = iter(made.parts()[0 if missing.base is None else 1 :])
    parts = []
    for entry, each in zip(entries, kept, strict=True):
        part = next(lowered) if each is None else each
        if entry and each is None:
            entry.keep(part, emit)
        parts.append(part)
    return kind.joined(parts)


def _fitting(kept: list[Kind | None]) -> list[Kind | None]:
    """Return what can be used of `kept`: nothing without the base's program, and what was lowered for that."""
    base = kept[0]
    if base is None:
        return [None] * len(kept)
    return [each if each is not None and each.foundation == base.foundation else None for each in kept]


def stamped(base: StreamedBase, missing: Missing[Kind], stamp: Stamp[Kind], emit: Emit) -> Kind | None:
    """Return what `stamp` derives from a few layers, None if nothing follows from them, which is noted."""
    from lora_core_xnnpack.stamping.shallow import LayeredBase

    try:
        made = stamp(LayeredBase.of(base), missing, emit)
    except TooFewLayersError:
        return None
    except (NotStampableError, DependsOnWeightsError, LoraCoreError) as error:  # a fault of the job's comes again
        emit(Noted(message=f"Every layer is lowered, because the others do not follow from a few: {error}"))
        return None
    gc.collect()  # graphs are cyclic, and hold the stand-ins
    return made


def _whole(
    job: ExportJob, base: StreamedBase, missing: Missing[Kind], lower: Lower[Kind], out: Path, emit: Emit
) -> Kind | None:
    outline = outlined(job)
    assert outline is not None, "a source that gave it once"
    try:
        with tempfile.TemporaryDirectory(prefix=".stand-in-", dir=out) as work:
            made = lower(stand_in(base, outline), Path(work), missing)
    except DependsOnWeightsError as error:
        emit(Noted(message=f"The base is held whole, because its lowered programs depend on its weights: {error}"))
        return None
    del outline
    gc.collect()  # graphs are cyclic, and hold the stand-ins
    return made
