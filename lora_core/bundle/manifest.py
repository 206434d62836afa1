"""`manifest.json`: the same manifest gives the same bytes; a wrong one is refused with every problem named.

Written by hand and not with cattrs: importing that costs as much as half of what `add` may take as a whole process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.adapters.adapter import LOW_RANK
from lora_core.adapters.slots.kinds import KINDS
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.bundle.bundle import SCHEMA_VERSION, Manifest
from lora_core.bundle.entry_fields import WITH_BRANCHES, EntryLists, check_branches, read_prompting
from lora_core.bundle.fields import Fields, Problems
from lora_core.bundle.listing import Listing
from lora_core.bundle.paths import why_unsafe
from lora_core.bundle.record_files import RecordFiles
from lora_core.bundle.records import NOT_CANONICAL, RecordNode, Records, flat
from lora_core.bundle.rendering import plain, rendered
from lora_core.errors import BundleError, Problem
from lora_core.intake.plain_json import parse_json
from lora_core.layers import LayerInfo, ModelSummary

FORMAT = "lora-core bundle"
_WITHOUT_PATHS = _WITH_KINDS = 2
"""From this schema on, layers no longer say what one runtime calls them, and slots say their kind."""
_WITH_WEIGHTS = 4
"""From this schema on, the base's weights are told; the first manifests of that schema do not have them yet."""


@attrs.frozen(kw_only=True)
class Whereabouts:
    """Where a manifest was read, for what it does not hold itself: as `RecordFiles` has it."""

    root: Path
    reopen: Callable[[Path], Records] | None = None
    pending: Path | None = None


def normalized(manifest: Manifest) -> Manifest:
    """Return `manifest` with everything whose order has no meaning in the order in which it is written."""
    lists = (manifest.artifacts, manifest.adapters, manifest.methods)
    if all(isinstance(each, Listing) for each in lists):
        return manifest
    return attrs.evolve(
        manifest,
        artifacts=tuple(sorted(manifest.artifacts, key=lambda artifact: artifact.path)),
        adapters=tuple(sorted(manifest.adapters, key=lambda adapter: adapter.name)),
        methods=tuple(sorted(manifest.methods, key=lambda m: (m.adapter is not None, m.adapter or "", m.name))),
    )


def dumps(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`: one line for each record, mappings sorted by key, a newline at the end.

    Records of adapters that have files of their own are named by those. Raises `LoraCoreError` if a free-form field
    (`options`, `detail`, ...) holds anything but plain JSON data.
    """
    root = manifest.records.root
    if root.branches:
        manifest = attrs.evolve(manifest, artifacts=manifest.base_artifacts, adapters=(), methods=manifest.base_methods)
    manifest = normalized(manifest)
    document: dict[str, Any] = {"format": FORMAT, "schema_version": manifest.schema_version}
    for field in attrs.fields(Manifest):
        document.setdefault(field.name, plain(getattr(manifest, field.name), field.name))
        if field.name == "methods":
            document["branches"] = plain(root.named, "branches")
    return rendered(document)


def loads(data: bytes, where: str, whereabouts: Whereabouts | None = None) -> Manifest:
    """Return the manifest in `data`; `where` names the file in messages.

    `whereabouts` say where records of adapters are that are not in `data`; they are read when they are asked for.
    Raises `BundleError` naming every field that is missing, of the wrong type or contradictory.
    """
    document = _document(data, where)
    problems = Problems(where)
    fields = Fields(document, "", problems)
    fields.text("format")
    version = fields.number("schema_version")
    lists = EntryLists.read(fields, version)
    manifest = Manifest(
        backend=fields.text("backend"),
        base=_summary(fields.object("base"), version),
        policy=fields.mapping("policy"),
        foundation=fields.text("foundation"),
        plans=tuple(_plan(entry, version) for entry in fields.objects("plans")),
        options=fields.mapping("options"),
        versions=fields.text_mapping("versions"),
        artifacts=lists.artifacts,
        adapters=lists.adapters,
        methods=lists.methods,
        kv_cache=fields.text("kv_cache"),
        detail=fields.mapping("detail"),
        prompting=read_prompting(fields, version),
        base_weights=fields.text_if_any("base_weights") if version >= _WITH_WEIGHTS else None,
    )
    fields.finish()
    if not problems.found:
        lists.check(problems, plans=len(manifest.plans), promptings=[manifest.prompting])
    if not problems.found and version >= WITH_BRANCHES:
        check_branches(lists.branches, "", problems)
        if not RecordNode(prefix="", records=manifest.records.all, branches=lists.branches).canonical:
            problems.add("branches", NOT_CANONICAL)
    if problems.found:
        raise BundleError(problems.found)
    return _branched(manifest, lists, whereabouts) if lists.branches else manifest


def _branched(manifest: Manifest, lists: EntryLists, whereabouts: Whereabouts | None) -> Manifest:
    """Return `manifest` with the records that its branches lead to."""
    paths = frozenset(each.path for each in manifest.artifacts)
    source = None
    if whereabouts is not None:
        source = RecordFiles(
            root=whereabouts.root,
            paths=paths,
            plans=len(manifest.plans),
            reopen=whereabouts.reopen,
            pending=whereabouts.pending,
        )
    records = Records(root=RecordNode(prefix="", branches=lists.branches), source=source)
    return manifest.listing(manifest.artifacts, records, manifest.methods)


def is_manifest(data: bytes) -> bool:
    """Say whether `data` is a bundle's manifest of any schema version."""
    try:
        document = parse_json(data)
    except ValueError:
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT


def _document(data: bytes, where: str) -> dict[str, Any]:
    remedy = "The bundle is damaged: export it again, or restore the file."
    try:
        document = parse_json(data)
    except ValueError as error:
        raise BundleError(f"The manifest is not JSON: {error}.", where=where, remedy=remedy) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BundleError(f"This is not the manifest of a bundle: 'format' is not {FORMAT!r}.", where=where)
    version = document.get("schema_version")
    if type(version) is not int or version < 1:
        raise BundleError("Field 'schema_version' must be a positive integer.", where=where, remedy=remedy)
    if version > SCHEMA_VERSION:
        raise BundleError(
            f"The bundle has schema version {version}; this lora-core reads up to {SCHEMA_VERSION}.",
            where=where,
            remedy="Update lora-core, or use the version that made the bundle.",
        )
    return document


def _summary(fields: Fields, version: int) -> ModelSummary:
    summary = ModelSummary(
        name=fields.text("name"),
        family=fields.text("family"),
        layers=tuple(_layer(entry, version) for entry in fields.objects("layers")),
        module_names=fields.texts("module_names"),
        identities=fields.texts("identities"),
        config=fields.mapping("config"),
        context_len=fields.optional_number("context_len"),
        vocab_size=fields.optional_number("vocab_size"),
        bos_id=fields.optional_number("bos_id"),
        eos_ids=fields.numbers("eos_ids"),
    )
    fields.finish()
    return summary


def _layer(fields: Fields, version: int) -> LayerInfo:
    if version < _WITHOUT_PATHS:
        fields.text("path")
    kind = fields.text("kind")
    if kind not in ("linear", "embedding"):
        fields.problem("kind", "must be 'linear' or 'embedding'.")
    layer = LayerInfo(
        name=fields.text("name"),
        kind="embedding" if kind == "embedding" else "linear",
        in_features=fields.number("in_features"),
        out_features=fields.number("out_features"),
        has_bias=fields.flag("has_bias"),
        is_output=fields.flag("is_output"),
        tied_to=fields.optional_text("tied_to"),
    )
    fields.finish()
    return layer


def _plan(fields: Fields, version: int) -> SlotPlan:
    plan = SlotPlan(slots=tuple(_slot(entry, version) for entry in fields.objects("slots")))
    fields.finish()
    return plan


def _slot(fields: Fields, version: int) -> Slot:
    kind = LOW_RANK if version < _WITH_KINDS else fields.text("kind")
    if kind not in KINDS:
        fields.problem("kind", f"is {kind!r}; this lora-core knows {', '.join(KINDS)}.")
    slot = Slot(
        module=fields.text("module"),
        in_features=fields.number("in_features"),
        out_features=fields.number("out_features"),
        rank=fields.number("rank"),
        kind=kind,
    )
    fields.finish()
    return slot


def check(manifest: Manifest) -> Sequence[Problem]:
    """Return what would make `manifest` unreadable once written: repeated names, unsafe paths, dangling references.

    Of a large bundle, the base and the adapters at hand are looked at.
    """
    problems = Problems("manifest")
    artifacts, adapters, methods = flat(manifest.records.in_memory)
    lists = EntryLists(
        artifacts=(*manifest.base_artifacts, *artifacts),
        adapters=adapters,
        methods=(*manifest.base_methods, *methods),
    )
    for artifact in lists.artifacts:
        unsafe = why_unsafe(artifact.path)
        if unsafe:
            problems.add("artifacts", f"lists {artifact.path!r}, which {unsafe}.")
    lists.check(problems, plans=len(manifest.plans), promptings=[manifest.prompting])
    return problems.found
