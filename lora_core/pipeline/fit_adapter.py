"""Fit an adapter: A and B chosen anew for the rounded base of a bundle, written as PEFT saves adapters."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.adapter import LOW_RANK, Adapter
from lora_core.adapters.identity import other_base
from lora_core.adapters.peft.fitted_mark import ORIGINAL
from lora_core.adapters.peft.writing import refuse_unwritable, write_peft
from lora_core.adapters.reading import read_adapters
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.slots.choice import plan_for
from lora_core.backend import ExportJob
from lora_core.bundle.bundle import Bundle
from lora_core.bundle.store import open_bundle
from lora_core.errors import AdapterError, PolicyError, UsageError
from lora_core.events import Emit, Warned
from lora_core.layers import LayerInfo
from lora_core.models.base import ModelHandle
from lora_core.models.text.stored import files_in, name_of
from lora_core.pipeline.add import base_of
from lora_core.pipeline.convert import refuse_occupied, write_directory
from lora_core.pipeline.given import adapter_formats, located
from lora_core.preparation.fitted_updates import FittedUpdates, fitted_updates
from lora_core.preparation.prompts import prompts_for
from lora_core.temporary import temporary_directory
from lora_core.verification.stored import recorded_policy

if TYPE_CHECKING:
    from lora_core.hub import PluginHub


@attrs.frozen(kw_only=True)
class FittedAdapter:
    """An adapter that was written, fitted for a bundle's foundation.

    `before` and `after` tell how far the outputs of its layers are from full precision on the prompts, as it was and as
    it is now: mean square errors, relative to the mean square of the outputs.
    """

    adapter: Adapter
    path: Path
    before: float
    after: float


def fit_adapter(
    path: Path,
    reference: AdapterReference,
    model: str | Path | ModelHandle,
    out: Path,
    *,
    calibration: Path | None,
    rank: int | None,
    source: str | None,
    download: bool,
    force: bool,
    emit: Emit,
    hub: PluginHub,
) -> FittedAdapter:
    """Fit an adapter to the bundle at `path`; `lora_core.fit_adapter` documents arguments and errors."""
    refuse_occupied(out, force=force)
    if rank is not None and rank < 1:
        raise UsageError(f"The rank must be at least 1, not {rank}.")
    bundle = open_bundle(path, emit)
    handle = base_of(bundle, model, source, hub)
    (reference,) = located((reference,), download=download)
    adapter = _read(reference, handle, bundle, hub, emit)
    rounded = _rounded_layers(bundle)
    prompts = prompts_for(handle, None if calibration is None else str(calibration))
    _warn_of_rank(bundle, adapter, rank, emit)
    backend = hub.backend(bundle.manifest.backend)
    job = ExportJob(
        model=handle,
        adapters=(),
        plans=(),
        policy=recorded_policy(bundle.manifest.policy),
        options=hub.options(bundle.manifest.backend, bundle.manifest.options),
    )
    with temporary_directory("fit") as work:
        round_weight = backend.rounding(job, work, emit)
        fitted = fitted_updates(handle, adapter, rounded, round_weight, prompts, rank=rank, emit=emit)
    made = attrs.evolve(adapter, updates=fitted.updates, fitted_for=bundle.manifest.foundation)
    write_directory(out, lambda directory: _write(made, adapter, reference, directory), emit)
    return _written(made, fitted, out, handle, hub)


def _read(reference: AdapterReference, handle: ModelHandle, bundle: Bundle, hub: PluginHub, emit: Emit) -> Adapter:
    (adapter,) = read_adapters([reference], handle.summary, adapter_formats(hub, handle))
    if adapter.fitted_for is not None:
        raise AdapterError(
            f"Adapter {adapter.name!r} was fitted already, to foundation {adapter.fitted_for}",
            where=adapter.source,
            remedy=f"Give the adapter that it was made of: its directory {ORIGINAL!r}.",
        )
    refuse_unwritable(adapter)
    if (contradiction := other_base(adapter, bundle.manifest.base)) is not None:
        emit(Warned(message=contradiction))
    return adapter


def _rounded_layers(bundle: Bundle) -> dict[str, LayerInfo]:
    """Return the linear layers that the bundle stores on a grid; raises `PolicyError` if there is none."""
    manifest = bundle.manifest
    schemes = recorded_policy(manifest.policy).assign(manifest.base.layers).schemes
    linear = [layer for layer in manifest.base.layers if layer.kind == "linear"]
    found = {layer.name: layer for layer in linear if (scheme := schemes[layer.name]) is not None and scheme.bits < 16}
    if not found:
        raise PolicyError(
            f"Policy {manifest.policy['name']!r} rounds no linear layer, so there is nothing to make up for",
            where=str(bundle.path),
            remedy="Link the adapter as it is, or export the base with a policy of 4 or 8 bits.",
        )
    return found


def _warn_of_rank(bundle: Bundle, adapter: Adapter, rank: int | None, emit: Emit) -> None:
    """Warn before the long work of a rank for which the bundle has no room."""
    plans = bundle.manifest.plans
    room = max((slot.rank for plan in plans for slot in plan.slots if slot.kind == LOW_RANK), default=0)
    if plans and rank is not None and rank > room:
        emit(Warned(message=f"No slot of this bundle has rank {rank}: to add it, export again with --max-rank {rank}."))
    elif plans and plan_for(plans, adapter) is None:
        emit(Warned(message=f"Adapter {adapter.name!r} fits no slot plan of this bundle, only others of its base."))


def _write(made: Adapter, original: Adapter, reference: AdapterReference, directory: Path) -> None:
    write_peft(made, directory)
    (directory / ORIGINAL).mkdir()
    write_peft(original, directory / ORIGINAL)
    if reference.directory is None or not reference.directory.is_dir():
        return
    for file in files_in(reference.directory):  # how the adapter is prompted
        target = directory / name_of(file)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def _written(made: Adapter, fitted: FittedUpdates, out: Path, handle: ModelHandle, hub: PluginHub) -> FittedAdapter:
    reference = AdapterReference(name=made.name, directory=out)
    (adapter,) = read_adapters([reference], handle.summary, adapter_formats(hub))
    return FittedAdapter(adapter=adapter, path=out, before=fitted.before, after=fitted.after)
