"""A bundle on disk: `manifest.json` and the artifacts it lists."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.slots.plan import SlotPlan
from lora_core.errors import BundleError
from lora_core.layers import ModelSummary
from lora_core.prompting import Prompting

SCHEMA_VERSION = 3


@attrs.frozen(kw_only=True)
class Artifact:
    """One file of the bundle.

    `path` is relative to the bundle with forward slashes. `role` is one of `foundation`, `program`, `adapter-data`,
    `template`, `relocations`, `tokenizer` (whatever text needs), or a word of the backend's own. `adapter` names the
    adapter whose file it is and that goes when the adapter is removed.
    """

    path: str
    role: str
    sha256: str
    size: int
    adapter: str | None = None


@attrs.frozen(kw_only=True)
class BundledAdapter:
    """An adapter as the manifest knows it: `digest` of its source, `foundation` fingerprint it was linked against,
    `plan` the index in `Manifest.plans` of the template it uses, `detail` for the backend (plain JSON data).
    `prompting` is how this adapter is prompted; None: as the base.
    """

    name: str
    digest: str
    foundation: str
    rank: int
    modules: int
    plan: int = 0
    detail: Mapping[str, Any] = attrs.field(factory=dict)
    prompting: Prompting | None = None


@attrs.frozen(kw_only=True)
class Method:
    """A callable entry: `program` is the artifact that holds it, `adapter` the adapter it applies (None: the base)."""

    name: str
    program: str
    adapter: str | None = None


@attrs.frozen(kw_only=True)
class Manifest:
    """`manifest.json`. Same inputs and versions give the same bytes: no times, no absolute paths.

    `plans` has one slot plan for each template (the union plan, or one for each distinct shape); it is empty if the
    bundle has no template. The order of artifacts, adapters and methods has no meaning. `options` are the backend's
    export options as plain data, `versions` the tools that made it, `detail` the backend's own plain data. `kv_cache`
    says when a runner must clear the cache. `prompting` is how the base is prompted; None: the bundle has no tokenizer
    (or is of schema 2 or older, which did not say).
    """

    backend: str
    base: ModelSummary
    policy: Mapping[str, Any]
    foundation: str
    plans: tuple[SlotPlan, ...]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    artifacts: tuple[Artifact, ...]
    adapters: tuple[BundledAdapter, ...]
    methods: tuple[Method, ...]
    kv_cache: str = "reset-on-adapter-change"
    detail: Mapping[str, Any] = attrs.field(factory=dict)
    prompting: Prompting | None = None
    schema_version: int = SCHEMA_VERSION


@attrs.frozen(kw_only=True)
class Bundle:
    """A bundle opened for reading: its directory and its manifest."""

    path: Path
    manifest: Manifest

    def file(self, artifact: Artifact | str) -> Path:
        """Return the path on disk of an artifact (or of its relative path).

        Raises `BundleError` for a path that the manifest does not list: only what it lists was looked at.
        """
        path = artifact if isinstance(artifact, str) else artifact.path
        if path not in self._listed:
            remedy = "The bundle is damaged or foreign: export it again."
            raise BundleError(f"The manifest lists no file {path!r}", where=str(self.path), remedy=remedy)
        return self.path / path

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(artifact.path for artifact in self.manifest.artifacts)
