"""A bundle on disk: `manifest.json` and the artifacts it lists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.bundle.entries import AdapterRecord, Artifact, Branch, BundledAdapter, Method
from lora_core.bundle.listing import AdapterNames, Listing
from lora_core.bundle.places import Places
from lora_core.bundle.records import SCHEMA_VERSION, Records, grouped
from lora_core.errors import BundleError
from lora_core.layers import ModelSummary
from lora_core.prompting import Prompting

__all__ = [
    "SCHEMA_VERSION",
    "AdapterRecord",
    "Artifact",
    "Branch",
    "Bundle",
    "BundledAdapter",
    "Manifest",
    "Method",
]

_NEAR = 256
"""Records that are looked through for a path one by one: those of a few adapters. Beyond, all are read, once."""


@attrs.frozen(kw_only=True)
class Manifest:
    """`manifest.json`. Same inputs and versions give the same bytes: no times, no absolute paths.

    `plans` has one slot plan for each template (the union plan, or one for each distinct shape); it is empty if the
    bundle has no template. The order of artifacts, adapters and methods has no meaning; where there are many adapters,
    looking at their entries reads them from files beside `manifest.json`, all of them: ask for `record` or for what is
    the `base_artifacts` instead. `options` are the backend's export options as plain data, `versions` the tools that
    made it, `detail` the backend's own plain data. `kv_cache` says when a runner must clear the cache. `prompting` is
    how the base is prompted; None: the bundle has no tokenizer (or is of schema 2 or older, which did not say).
    `base_weights` tells the base from others of the same shape (`lora_core.models.weights_digest`); None: the bundle is
    of schema 3 or older, or an early one of schema 4, which did not say.
    """

    backend: str
    base: ModelSummary
    policy: Mapping[str, Any]
    foundation: str
    plans: tuple[SlotPlan, ...]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    artifacts: Sequence[Artifact]
    adapters: Sequence[BundledAdapter]
    methods: Sequence[Method]
    kv_cache: str = "reset-on-adapter-change"
    detail: Mapping[str, Any] = attrs.field(factory=dict)
    prompting: Prompting | None = None
    base_weights: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def base_artifacts(self) -> tuple[Artifact, ...]:
        """The files that are not one adapter's alone."""
        return self._parts[0]

    @property
    def base_methods(self) -> tuple[Method, ...]:
        """The methods that apply no adapter."""
        return self._parts[2]

    @property
    def records(self) -> Records:
        """What is listed of each adapter."""
        return self._parts[1]

    @property
    def names(self) -> Collection[str]:
        """The adapters' names; going through them reads all records, asking for one does not."""
        return AdapterNames(records=self.records)

    def record(self, name: str) -> AdapterRecord | None:
        """Return all that is listed of one adapter, None if it is not there; reads no other's files."""
        return self.records.find(name)

    def with_records(self, put: Iterable[AdapterRecord] = (), dropped: Iterable[str] = ()) -> Manifest:
        """Return this manifest without the adapters `dropped`, and with those of `put`, new or in place of others."""
        return self.listing(self.base_artifacts, self.records.changed(put, dropped), self.base_methods)

    def listing(self, artifacts: Iterable[Artifact], records: Records, methods: Iterable[Method]) -> Manifest:
        """Return this manifest with other artifacts and methods of the base, and other records of adapters."""
        files = Listing(part="artifacts", own=tuple(sorted(artifacts, key=lambda each: each.path)), records=records)
        adapters: Listing[BundledAdapter] = Listing(part="adapters", own=(), records=records)
        entries = Listing(part="methods", own=tuple(sorted(methods, key=lambda each: each.name)), records=records)
        if records.root.branches:
            return attrs.evolve(self, artifacts=files, adapters=adapters, methods=entries)
        return attrs.evolve(self, artifacts=tuple(files), adapters=tuple(adapters), methods=tuple(entries))

    @cached_property
    def _parts(self) -> tuple[tuple[Artifact, ...], Records, tuple[Method, ...]]:
        lists = self.artifacts, self.adapters, self.methods
        if all(isinstance(each, Listing) for each in lists):
            artifacts, adapters, methods = lists
            assert isinstance(artifacts, Listing)
            assert isinstance(adapters, Listing)
            assert isinstance(methods, Listing)
            if artifacts.records is adapters.records is methods.records:
                return artifacts.own, adapters.records, methods.own
        own, records, entry_points = grouped(*lists)
        return own, Records.of(records), entry_points


@attrs.frozen(kw_only=True)
class Bundle:
    """A bundle opened for reading: its directory and its manifest."""

    path: Path
    manifest: Manifest

    def record(self, name: str) -> AdapterRecord | None:
        """Return what the manifest lists of one adapter, None if it has none of that name.

        Its files are looked at, if they were not when the bundle was opened; raises `BundleError` for one that is
        missing, of another size or no file.
        """
        record = self.manifest.record(name)
        if record is not None and self.manifest.records.root.branches:
            places = Places(self.path)
            problems = [each for artifact in record.artifacts if (each := places.problem(artifact)) is not None]
            if problems:
                raise BundleError(problems)
        return record

    def file(self, artifact: Artifact | str) -> Path:
        """Return the path on disk of an artifact (or of its relative path).

        Raises `BundleError` for a path that the manifest does not list: only what it lists was looked at.
        """
        path = artifact if isinstance(artifact, str) else artifact.path
        if not self._lists(path, None if isinstance(artifact, str) else artifact.adapter):
            remedy = "The bundle is damaged or foreign: export it again."
            raise BundleError(f"The manifest lists no file {path!r}", where=str(self.path), remedy=remedy)
        return self.path / path

    def _lists(self, path: str, adapter: str | None) -> bool:
        if path in self._of_base:
            return True
        records = self.manifest.records
        asked = None if adapter is None else records.find(adapter)
        near = islice(records.seen, _NEAR) if asked is None else (asked,)
        return any(each.path == path for record in near for each in record.artifacts) or path in self._listed

    @cached_property
    def _of_base(self) -> frozenset[str]:
        return frozenset(artifact.path for artifact in self.manifest.base_artifacts)

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(artifact.path for artifact in self.manifest.artifacts)
