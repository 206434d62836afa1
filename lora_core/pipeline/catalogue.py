"""List: what adapters a source has, and which templates of which bundles each fits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.format import AdapterFormat
from lora_core.adapters.identity import other_base, refuse_fitted_elsewhere
from lora_core.adapters.packages.reading import AdapterPackage
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.slots.choice import place
from lora_core.adapters.slots.kinds import max_rank
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.store import open_bundle
from lora_core.errors import LoraCoreError, Problem
from lora_core.events import Emit, StageAdvanced, stage
from lora_core.layers import ModelSummary
from lora_core.pipeline.given import adapter_formats
from lora_core.pipeline.kinds import refuse_kinds
from lora_core.pipeline.packing import package_problems
from lora_core.pipeline.sources import SourcedAdapter, find_adapters
from lora_core.specs import BackendSpec
from lora_core.tensors import LazyTensor

if TYPE_CHECKING:
    from lora_core.hub import PluginHub

_STAGE = "Read adapters"


@attrs.frozen(kw_only=True)
class Fit:
    """Whether an adapter fits a bundle: the index of the slot `plan` whose template it uses (None: it fits none; 0 for
    a backend without slot plans), or why not. `doubt` is what speaks against it although it fits.
    """

    bundle: str
    plan: int | None = None
    problems: tuple[Problem, ...] = ()
    doubt: str | None = None


@attrs.frozen(kw_only=True)
class CatalogueEntry:
    """An adapter of a source. `base` is the model that it says it was trained for, `size` the bytes of its tensors.

    What could not be read has `problems` in place of all but name and place.
    """

    name: str
    place: str
    base: str | None = None
    rank: int | None = None
    modules: int | None = None
    size: int | None = None
    digest: str | None = None
    fits: tuple[Fit, ...] = ()
    problems: tuple[Problem, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return attrs.asdict(self)


@attrs.frozen(kw_only=True)
class _Candidate:
    """A bundle that adapters are held against."""

    bundle: Bundle
    spec: BackendSpec
    backend: Backend

    @classmethod
    def open(cls, path: Path, emit: Emit, hub: PluginHub) -> _Candidate:
        bundle = open_bundle(path, emit)
        spec = hub.spec_of(bundle)
        return cls(bundle=bundle, spec=spec, backend=hub.backend(spec.name, check_requirements=False))

    def fit(self, found: SourcedAdapter, formats: Sequence[AdapterFormat]) -> tuple[Fit, Adapter | None]:
        """Hold an adapter against the bundle; the adapter as it was read for it, None if it cannot be."""
        where, manifest, adapter = str(self.bundle.path), self.bundle.manifest, None
        try:
            (adapter,) = read_adapters([found.reference], manifest.base, formats)
            if found.reference.package is not None:
                problems = tuple(package_problems(self.bundle, self.backend, found.path, None))
                if problems:
                    return Fit(bundle=where, problems=problems), adapter
            refuse_kinds(self.spec, [adapter])
            refuse_fitted_elsewhere([adapter], manifest.foundation)
            plan = place([adapter], manifest.plans)[0].index if self.spec.slot_plans else 0
        except LoraCoreError as error:
            return Fit(bundle=where, problems=tuple(error.problems)), adapter
        return Fit(bundle=where, plan=plan, doubt=other_base(adapter, manifest.base)), adapter


def catalogue(source: Path, bundles: Sequence[Path], *, emit: Emit, hub: PluginHub) -> Iterator[CatalogueEntry]:
    """Yield what is below `source`; `lora_core.catalogue` documents arguments and errors."""
    candidates = [_Candidate.open(path, emit, hub) for path in bundles]
    formats = adapter_formats(hub)
    reserved = candidates[0].spec.reserved if len(candidates) == 1 else None
    found = find_adapters(source, formats, reserved)
    with stage(emit, _STAGE):
        for done, each in enumerate(found, start=1):
            yield _entry(each, candidates, formats)
            emit(StageAdvanced(stage=_STAGE, done=done, total=len(found)))


def _entry(found: SourcedAdapter, candidates: Sequence[_Candidate], formats: Sequence[AdapterFormat]) -> CatalogueEntry:
    fits, adapter = [], None
    for candidate in candidates:
        fit, read = candidate.fit(found, formats)
        fits.append(fit)
        adapter = adapter or read
    entry = CatalogueEntry(name=found.name, place=found.place, fits=tuple(fits))
    if adapter is None:
        try:
            (adapter,) = read_adapters([found.reference], _implied_base(found, formats), formats)
        except LoraCoreError as error:
            # For a bundle it says more of the same.
            return attrs.evolve(entry, problems=tuple(error.problems))
    return attrs.evolve(
        entry,
        base=adapter.base_model,
        rank=max_rank(adapter),
        modules=len({update.module for update in adapter.updates}),
        size=sum(_size(tensor) for update in adapter.updates for tensor in update.tensors.values()),
        digest=adapter.digest,
    )


def _size(tensor: LazyTensor) -> int:
    return math.prod(tensor.shape) * int(tensor.dtype.lstrip("BF")) // 8


def _implied_base(found: SourcedAdapter, formats: Sequence[AdapterFormat]) -> ModelSummary:
    if found.reference.package is not None:
        return AdapterPackage.open(found.path).implied_base()
    return max(formats, key=lambda each: each.sniff(found.path)).implied_base(found.path)
