"""Pack: adapters become packages; packages are held against the bundle that they are to be added to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.packages.header import SUFFIX
from lora_core.adapters.packages.reading import AdapterPackage
from lora_core.adapters.packages.seal import SigningKey, Trust
from lora_core.adapters.packages.writing import Source, package_bytes
from lora_core.adapters.reference import AdapterReference
from lora_core.adapters.slots.recovery import recovered_updates
from lora_core.backend import Backend
from lora_core.bundle.bundle import Bundle, BundledAdapter
from lora_core.bundle.durable import write_whole
from lora_core.bundle.store import open_bundle
from lora_core.errors import AdapterError, Problem, UsageError
from lora_core.events import Emit, ignore
from lora_core.pipeline.given import adapter_formats
from lora_core.pipeline.packed_text import packed
from lora_core.pipeline.packing_kit import PackingKit, plan_digest, template_digest
from lora_core.pipeline.written import telling_of
from lora_core.suggestions import did_you_mean

if TYPE_CHECKING:
    from lora_core.hub import PluginHub

_ANOTHER = "Get the package that was made for this bundle, or pack the adapter again."


@attrs.frozen(kw_only=True)
class PackedAdapter:
    """A package that was written: `digest` is the package's own."""

    name: str
    path: Path
    size: int
    digest: str


def pack(
    path: Path,
    adapter: str | AdapterReference,
    out: Path | None,
    *,
    key: Path | None,
    emit: Emit,
    hub: PluginHub,
) -> PackedAdapter:
    """Write the package of one adapter; `lora_core.pack` documents arguments and errors."""
    signing = None if key is None else SigningKey.read(key)
    bundle = open_bundle(path, emit)
    spec = hub.spec_of(bundle)
    backend = hub.backend(spec.name, check_requirements=False)
    if isinstance(adapter, str):
        return pack_stored(bundle, backend, _entry(bundle, adapter), out, signing, emit)
    readied = PackingKit.of(bundle, spec, backend).readied(adapter, adapter_formats(hub))
    for event in readied.told:
        emit(event)
    return _write(readied.adapter, readied.source, out, signing, emit)


def pack_stored(
    bundle: Bundle,
    backend: Backend,
    entry: BundledAdapter,
    out: Path | None,
    key: SigningKey | None,
    emit: Emit = ignore,
) -> PackedAdapter:
    """Write the package of an adapter of `bundle` from what the bundle stores, to `out` (None: `NAME.lora` here).

    Raises as `Backend.stored_values`.
    """
    values = backend.stored_values(bundle, entry.name)
    updates = recovered_updates(bundle.manifest.plans[entry.plan], values)
    adapter = Adapter(name=entry.name, updates=updates, digest=entry.digest, source=str(bundle.path))
    told = {} if entry.prompting is None else packed(bundle, entry.prompting)
    return _write(adapter, _source(bundle, backend, entry.plan, told), out, key, emit)


def _source(bundle: Bundle, backend: Backend, plan: int, prompting: dict[str, str]) -> Source:
    return Source(
        foundation=bundle.manifest.foundation,
        template=template_digest(bundle, backend, plan),
        plan=plan_digest(bundle, plan),
        prompting=prompting,
    )


def _write(adapter: Adapter, source: Source, out: Path | None, key: SigningKey | None, emit: Emit) -> PackedAdapter:
    target = Path(f"{adapter.name}{SUFFIX}") if out is None else out
    parts = package_bytes(adapter, source, key)
    with telling_of(target, emit):
        write_whole(target, parts)
    package = AdapterPackage.open(target)
    return PackedAdapter(name=adapter.name, path=target, size=target.stat().st_size, digest=package.digest)


def package_reference(path: Path, name: str | None = None) -> AdapterReference:
    """Return the reference to the package at `path`, called as it says if `name` is None; raises `AdapterError`."""
    return AdapterReference(name=name or AdapterPackage.open(path).header.name, package=path)


def refuse_packages(
    bundle: Bundle, backend: Backend, references: Iterable[AdapterReference], trust: Trust | None
) -> None:
    """Raise `AdapterError` with what is wrong with each package among `references`: the file itself, whom it is from,
    or what it was made for. With `trust`, adapters that are no packages are refused too.
    """
    problems: list[Problem] = []
    for reference in references:
        if reference.package is not None:
            problems += package_problems(bundle, backend, reference.package, trust)
        elif trust is not None and not reference.parts:
            what = f"Adapter {reference.name!r} is no package, and --trust asks for a signature"
            problems.append(Problem(what=what, remedy="Add it without --trust, or pack and sign it."))
    if problems:
        raise AdapterError(problems)


def package_problems(bundle: Bundle, backend: Backend, path: Path, trust: Trust | None) -> Iterator[Problem]:
    """Yield what is wrong with the package at `path` for `bundle`: the file itself, whom it is from, what it is for."""
    try:
        package = AdapterPackage.open(path)
    except AdapterError as error:
        yield from error.problems
        return
    if trust is not None and (problem := package.distrust(trust)) is not None:
        yield problem
    header, manifest = package.header, bundle.manifest
    if header.foundation != manifest.foundation:
        what = f"The package is for foundation {header.foundation}, the bundle's is {manifest.foundation}"
        yield Problem(what=what, where=str(path), remedy=_ANOTHER)
        return
    plans = [index for index in range(len(manifest.plans) or 1) if plan_digest(bundle, index) == header.plan]
    if not plans or all(template_digest(bundle, backend, index) != header.template for index in plans):
        what = f"The package is for a template with digest {header.template}, which the bundle does not have"
        yield Problem(what=what, where=str(path), remedy=_ANOTHER)


def _entry(bundle: Bundle, name: str) -> BundledAdapter:
    if (record := bundle.record(name)) is not None:
        return record.adapter
    known = [entry.name for entry in bundle.manifest.adapters]
    remedy = did_you_mean(name, known, nothing="It has none: pack NAME=DIR.")
    raise UsageError(f"The bundle has no adapter {name!r}", where=str(bundle.path), remedy=remedy)
