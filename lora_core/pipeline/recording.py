"""From what a backend wrote to what the manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.slots.choice import plan_for
from lora_core.adapters.slots.plan import SlotPlan
from lora_core.backend import Artifacts
from lora_core.bundle.bundle import Artifact, BundledAdapter, Manifest
from lora_core.bundle.durable import storage_errors, walk
from lora_core.bundle.manifest import check
from lora_core.errors import PluginError, Problem
from lora_core.sharing.fingerprint import file_sha256


def recorded(artifacts: Iterable[Artifact], out: Path, backend: str) -> tuple[Artifact, ...]:
    """Return `artifacts` with size and hash of the files in `out`.

    Raises `PluginError` if a file is listed and not there, there and not listed, or of another size than listed.
    """
    listed = {artifact.path: artifact for artifact in artifacts}
    found = {path.relative_to(out).as_posix(): path for path in walk(out) if not path.is_dir()}
    problems = [Problem(what=f"{path!r} is listed but was not written") for path in sorted(set(listed) - set(found))]
    problems += [Problem(what=f"{path!r} was written but is not listed") for path in sorted(set(found) - set(listed))]
    complete = []
    for path in sorted(set(listed) & set(found)):
        with storage_errors("read", found[path]):
            size = found[path].stat().st_size
            digest = listed[path].sha256 or file_sha256(found[path])
        if listed[path].size not in (0, size):
            problems.append(Problem(what=f"{path!r} has {size} bytes and is listed with {listed[path].size}"))
        complete.append(attrs.evolve(listed[path], size=size, sha256=digest))
    blame(backend, problems)
    return tuple(complete)


def updated(manifest: Manifest, changed: Artifacts) -> Manifest:
    """Return `manifest` with what a link or an unlink changed: new entries, and those of the same path or name."""
    if changed.foundation != manifest.foundation:
        what = f"The foundation is {changed.foundation} after the change and was {manifest.foundation}"
        blame(manifest.backend, [Problem(what=what)])
    return attrs.evolve(
        manifest,
        artifacts=_merged(manifest.artifacts, changed.artifacts, "path"),
        adapters=_merged(manifest.adapters, changed.adapters, "name"),
        methods=_merged(manifest.methods, changed.methods, "name"),
        detail={**manifest.detail, **changed.detail},
    )


def checked(manifest: Manifest) -> Manifest:
    """Return `manifest` if it can be read again; raises `PluginError`, because backends filled it."""
    problems = [*check(manifest)]
    problems += [
        Problem(what=f"Adapter {adapter.name!r} is for foundation {adapter.foundation}, the bundle has another")
        for adapter in manifest.adapters
        if adapter.foundation != manifest.foundation
    ]
    blame(manifest.backend, problems)
    return manifest


def on_plans(
    bundled: Sequence[BundledAdapter], adapters: Sequence[Adapter], plans: Sequence[SlotPlan]
) -> tuple[BundledAdapter, ...]:
    """Return what a backend recorded of `adapters`, in their order, each with the index of the plan it uses."""
    by_name = {each.name: each for each in bundled}
    return tuple(
        attrs.evolve(by_name[adapter.name], plan=plan_for(plans, adapter) or 0)
        for adapter in adapters
        if adapter.name in by_name
    )


def unrecorded(written: Artifacts, adapters: Sequence[Adapter]) -> list[Problem]:
    """Return a problem for each adapter that was given to a backend and left out of what it recorded."""
    known = {each.name for each in written.adapters}
    return [
        Problem(what=f"Adapter {adapter.name!r} was given and not recorded")
        for adapter in adapters
        if adapter.name not in known
    ]


def plain_options(options: Any) -> Mapping[str, Any]:
    """Return the fields of an options class as plain data; of paths only the name, no bundle tells of a machine."""
    return attrs.asdict(options, value_serializer=_plain) if attrs.has(type(options)) else {}


def _plain(_instance: object, _field: object, value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Enum):
        return value.value
    return sorted(value) if isinstance(value, set | frozenset) else value


def _merged(old: Iterable[Any], new: Iterable[Any], key: str) -> tuple[Any, ...]:
    merged = {getattr(entry, key): entry for entry in old}
    merged.update((getattr(entry, key), entry) for entry in new)
    return tuple(merged.values())


def blame(backend: str, problems: Iterable[Problem]) -> None:
    """Raise `PluginError` with `problems` of what `backend` wrote, if there are any."""
    found = tuple(problems)
    if found:
        where = f"backend {backend!r}"
        raise PluginError([attrs.evolve(p, where=where, remedy="This is a defect of the backend.") for p in found])
