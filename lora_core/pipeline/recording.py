"""From what a backend wrote to what the manifest says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.slots.choice import PlacedAdapter
from lora_core.adapters.slots.kinds import max_rank
from lora_core.backend import Artifacts, WrittenFile
from lora_core.bundle.bundle import AdapterRecord, Artifact, BundledAdapter, Manifest, Method
from lora_core.bundle.durable import storage_errors, walk
from lora_core.bundle.hashing import file_sha256
from lora_core.bundle.manifest import check
from lora_core.errors import PluginError, Problem
from lora_core.pipeline.adapter_texts import AdapterTexts
from lora_core.prompting import Prompting

NO_TEXTS = AdapterTexts(files={}, told=())


@attrs.frozen(kw_only=True)
class Changed:
    """What a link or an unlink changed, as manifest entries."""

    foundation: str
    artifacts: tuple[Artifact, ...]
    adapters: tuple[BundledAdapter, ...]
    methods: tuple[Method, ...]
    detail: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        written: Artifacts,
        adapters: Iterable[PlacedAdapter],
        out: Path,
        backend: str,
        *,
        texts: AdapterTexts = NO_TEXTS,
    ) -> Changed:
        """Measure what `backend` wrote into `out` for `adapters`, and write what they say about prompting beside it;
        raises `PluginError` as `recorded` does.
        """
        return cls(
            foundation=written.foundation,
            artifacts=recorded((*written.files, *texts.write(out)), out, backend),
            adapters=bundled(adapters, written, texts.promptings()),
            methods=written.methods,
            detail=written.detail,
        )


def recorded(files: Iterable[WrittenFile], out: Path, backend: str) -> tuple[Artifact, ...]:
    """Return `files` as artifacts, with size and hash of what is in `out`.

    Raises `PluginError` if a file is listed and not there, or there and not listed.
    """
    listed = {file.path: file for file in files}
    found = {path.relative_to(out).as_posix(): path for path in walk(out) if not path.is_dir()}
    problems = [Problem(what=f"{path!r} is listed but was not written") for path in sorted(set(listed) - set(found))]
    problems += [Problem(what=f"{path!r} was written but is not listed") for path in sorted(set(found) - set(listed))]
    complete = []
    for path in sorted(set(listed) & set(found)):
        with storage_errors("read", found[path]):
            size = found[path].stat().st_size
            digest = listed[path].sha256 or file_sha256(found[path])
        file = listed[path]
        complete.append(Artifact(path=path, role=file.role, sha256=digest, size=size, adapter=file.adapter))
    blame(backend, problems)
    return tuple(complete)


def updated(manifest: Manifest, changed: Changed) -> Manifest:
    """Return `manifest` with what a link or an unlink changed: new entries, and those of the same path or name."""
    if changed.foundation != manifest.foundation:
        what = f"The foundation is {changed.foundation} after the change and was {manifest.foundation}"
        blame(manifest.backend, [Problem(what=what)])
    paths, names = {each.path for each in changed.artifacts}, {each.name for each in changed.methods}
    entries = {each.name: each for each in changed.adapters}
    put = []
    for name in sorted({*entries, *_owners(manifest, changed)}):
        old = manifest.record(name)
        entry = entries[name] if name in entries or old is None else old.adapter
        kept = old or AdapterRecord(adapter=entry)
        artifacts = [each for each in kept.artifacts if each.path not in paths]
        artifacts += [each for each in changed.artifacts if each.adapter == name]
        methods = [each for each in kept.methods if each.name not in names]
        methods += [each for each in changed.methods if each.adapter == name]
        put.append(AdapterRecord(adapter=entry, artifacts=tuple(artifacts), methods=tuple(methods)))
    known = {each.name for each in put}
    base = [each for each in manifest.base_artifacts if each.path not in paths]
    base += [each for each in changed.artifacts if each.adapter not in known]
    entry_points = [each for each in manifest.base_methods if each.name not in names]
    entry_points += [each for each in changed.methods if each.adapter not in known]
    detail = {**manifest.detail, **changed.detail}
    return attrs.evolve(manifest.listing(base, manifest.records.changed(put), entry_points), detail=detail)


def _owners(manifest: Manifest, changed: Changed) -> set[str]:
    """Return the adapters of the bundle that own anything of what changed, or owned it."""
    named = {each.adapter for each in changed.artifacts} | {each.adapter for each in changed.methods}
    owners = {name for name in named if name is not None and manifest.record(name) is not None}
    paths = {each.path for each in changed.artifacts if each.adapter is None}
    names = {each.name for each in changed.methods if each.adapter is None}
    paths -= {each.path for each in manifest.base_artifacts}
    names -= {each.name for each in manifest.base_methods}
    if paths or names:  # new in the base, so they may have been an adapter's
        owners |= {
            record.name
            for record in manifest.records.all
            if paths & {each.path for each in record.artifacts} or names & {each.name for each in record.methods}
        }
    return owners


def checked(manifest: Manifest) -> Manifest:
    """Return `manifest` if it can be read again; raises `PluginError`, because backends filled it.

    Of a large bundle, the base and the adapters at hand are looked at.
    """
    problems = [*check(manifest)]
    problems += [
        Problem(what=f"Adapter {each.name!r} is for foundation {each.adapter.foundation}, the bundle has another")
        for each in manifest.records.in_memory
        if each.adapter.foundation != manifest.foundation
    ]
    blame(manifest.backend, problems)
    return manifest


def bundled(
    adapters: Iterable[PlacedAdapter], written: Artifacts, promptings: Mapping[str, Prompting]
) -> tuple[BundledAdapter, ...]:
    """Return what the manifest says of `adapters`, which a backend has written as `written`; `promptings` are of those
    that are prompted otherwise than the base.
    """
    return tuple(
        BundledAdapter(
            name=placed.name,
            digest=placed.adapter.digest,
            foundation=written.foundation,
            rank=max_rank(placed.adapter),
            modules=len({update.module for update in placed.adapter.updates}),
            plan=placed.index,
            detail=written.adapter_details.get(placed.name, {}),
            prompting=promptings.get(placed.name),
        )
        for placed in adapters
    )


def unlinked(written: Artifacts, adapters: Iterable[PlacedAdapter]) -> list[Problem]:
    """Return a problem for each adapter that was given to a backend and has no method in what it wrote."""
    known = {method.adapter for method in written.methods}
    return [
        Problem(what=f"Adapter {placed.name!r} was given and has no method")
        for placed in adapters
        if placed.name not in known
    ]


def plain_options(options: Any) -> Mapping[str, Any]:
    """Return the fields of an options class as plain data; of paths only the name, no bundle tells of a machine.

    Fields that say `omit_if_default` and have their default are left out.
    """
    if not attrs.has(type(options)):
        return {}
    return attrs.asdict(options, filter=_told, value_serializer=_plain)


def _told(field: attrs.Attribute[Any], value: object) -> bool:
    return not (field.metadata.get("omit_if_default") and value == field.default)


def _plain(_instance: object, _field: object, value: Any) -> Any:
    if isinstance(value, Path):
        return value.name
    if isinstance(value, Enum):
        return value.value
    return sorted(value) if isinstance(value, set | frozenset) else value


def blame(backend: str, problems: Iterable[Problem]) -> None:
    """Raise `PluginError` with `problems` of what `backend` wrote, if there are any."""
    found = tuple(problems)
    if found:
        where = f"backend {backend!r}"
        raise PluginError([attrs.evolve(p, where=where, remedy="This is a defect of the backend.") for p in found])
