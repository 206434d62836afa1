"""What a manifest lists: files, adapters, methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.prompting import Prompting


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
class AdapterRecord:
    """All that a manifest lists of one adapter: itself, the files that are its alone, its methods."""

    adapter: BundledAdapter
    artifacts: tuple[Artifact, ...] = ()
    methods: tuple[Method, ...] = ()

    @property
    def name(self) -> str:
        """The adapter's name."""
        return self.adapter.name


@attrs.frozen(kw_only=True)
class Branch:
    """A part of a large bundle's records, in the file `manifest/PREFIX.json`.

    `prefix` is what the SHA-256 of its adapters' names in lower case begin with (hexadecimal), `adapters` their number,
    `sha256` the hash of the file.
    """

    prefix: str
    adapters: int
    sha256: str
