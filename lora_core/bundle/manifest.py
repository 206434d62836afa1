"""`manifest.json`: the same manifest gives the same bytes; a wrong one is refused with every problem named.

Written by hand and not with cattrs: importing that costs as much as half of what `add` may take as a whole process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from lora_core.adapters.adapter import LOW_RANK
from lora_core.adapters.names import is_name
from lora_core.adapters.slots.kinds import KINDS
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.bundle.bundle import SCHEMA_VERSION, Artifact, BundledAdapter, Manifest, Method
from lora_core.bundle.fields import Fields, Problems
from lora_core.bundle.paths import why_unsafe
from lora_core.errors import BundleError, LoraCoreError, Problem
from lora_core.intake.limits import DIGITS
from lora_core.intake.plain_json import parse_json
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.prompting import Prompting

FORMAT = "lora-core bundle"
_WITHOUT_PATHS = _WITH_KINDS = 2
"""From this schema on, layers no longer say what one runtime calls them, and slots say their kind."""
_WITH_PROMPTING = 3
"""From this schema on, bundle and adapters say how they are prompted."""

_RECORDS = (Artifact, BundledAdapter, LayerInfo, Method, ModelSummary, Prompting, Slot, SlotPlan)


def normalized(manifest: Manifest) -> Manifest:
    """Return `manifest` with everything whose order has no meaning in the order in which it is written."""
    return attrs.evolve(
        manifest,
        artifacts=tuple(sorted(manifest.artifacts, key=lambda artifact: artifact.path)),
        adapters=tuple(sorted(manifest.adapters, key=lambda adapter: adapter.name)),
        methods=tuple(sorted(manifest.methods, key=lambda m: (m.adapter is not None, m.adapter or "", m.name))),
    )


def dumps(manifest: Manifest) -> bytes:
    """Return the bytes of `manifest.json`: one line for each record, mappings sorted by key, a newline at the end.

    Raises `LoraCoreError` if a free-form field (`options`, `detail`, ...) holds anything but plain JSON data.
    """
    manifest = normalized(manifest)
    document: dict[str, Any] = {"format": FORMAT, "schema_version": manifest.schema_version}
    for field in attrs.fields(Manifest):
        document.setdefault(field.name, _plain(getattr(manifest, field.name), field.name))
    return ("".join(_render(document)) + "\n").encode()


def loads(data: bytes, where: str) -> Manifest:
    """Return the manifest in `data`; `where` names the file in messages.

    Raises `BundleError` naming every field that is missing, of the wrong type or contradictory.
    """
    document = _document(data, where)
    problems = Problems(where)
    fields = Fields(document, "", problems)
    fields.text("format")
    version = fields.number("schema_version")
    manifest = Manifest(
        backend=fields.text("backend"),
        base=_summary(fields.object("base"), version),
        policy=fields.mapping("policy"),
        foundation=fields.text("foundation"),
        plans=tuple(_plan(entry, version) for entry in fields.objects("plans")),
        options=fields.mapping("options"),
        versions=fields.text_mapping("versions"),
        artifacts=tuple(_artifact(entry) for entry in fields.objects("artifacts")),
        adapters=tuple(_adapter(entry, version) for entry in fields.objects("adapters")),
        methods=tuple(_method(entry) for entry in fields.objects("methods")),
        kv_cache=fields.text("kv_cache"),
        detail=fields.mapping("detail"),
        prompting=_prompting(fields, version),
    )
    fields.finish()
    if not problems.found:
        _cross_check(manifest, problems)
    if problems.found:
        raise BundleError(problems.found)
    return manifest


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


def _plain(value: object, name: str) -> Any:
    """Turn a value into plain JSON data: fields of records in their declared order, keys of mappings sorted."""
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 10**DIGITS):
        return value
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN, which JSON does not have
        return value
    if isinstance(value, _RECORDS):
        return {f.name: _plain(getattr(value, f.name), f"{name}.{f.name}") for f in attrs.fields(type(value))}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(value[key], f"{name}.{key}") for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [_plain(item, name) for item in value]
    raise LoraCoreError(f"Manifest field '{name}' holds {value!r}, which is not plain JSON data.", where=name)


def _render(value: Any, indent: str = "") -> Iterator[str]:
    """Yield JSON text that keeps one record (a layer, a slot, an artifact) on one line.

    A line for each record reads and compares well, and the records themselves are left to json's fast encoder.
    """
    inner = indent + "  "
    if isinstance(value, dict) and value and (len(indent) < 4 or _holds_records(value)):
        start = "{\n"
        for key, item in value.items():
            yield f"{start}{inner}{_compact(key)}: "
            yield from _render(item, inner)
            start = ",\n"
        yield f"\n{indent}}}"
    elif isinstance(value, list) and value and isinstance(value[0], dict | str):
        start = "[\n"
        for item in value:
            yield start + inner
            yield from _render(item, inner) if _holds_records(item) else (_compact(item),)
            start = ",\n"
        yield f"\n{indent}]"
    else:
        yield _compact(value)


def _holds_records(value: Any) -> bool:
    return isinstance(value, dict) and any(
        isinstance(item, list) and item and isinstance(item[0], dict) for item in value.values()
    )


_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


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


def _artifact(fields: Fields) -> Artifact:
    artifact = Artifact(
        path=fields.text("path"),
        role=fields.text("role"),
        sha256=fields.text("sha256"),
        size=fields.number("size"),
        adapter=fields.optional_text("adapter"),
    )
    unsafe = why_unsafe(artifact.path)
    if unsafe:
        fields.problem("path", f"is {artifact.path!r}, which {unsafe}.")
    if len(artifact.sha256) != 64 or set(artifact.sha256) - set("0123456789abcdef"):
        fields.problem("sha256", "must be 64 lower-case hexadecimal digits.")
    fields.finish()
    return artifact


def _adapter(fields: Fields, version: int) -> BundledAdapter:
    adapter = BundledAdapter(
        name=fields.text("name"),
        digest=fields.text("digest"),
        foundation=fields.text("foundation"),
        rank=fields.number("rank"),
        modules=fields.number("modules"),
        plan=fields.number("plan"),
        detail=fields.mapping("detail"),
        prompting=_prompting(fields, version),
    )
    if not is_name(adapter.name):
        fields.problem("name", f"is {adapter.name!r}, which cannot be an adapter's name.")
    fields.finish()
    return adapter


def _prompting(fields: Fields, version: int) -> Prompting | None:
    """Return the record in field `prompting`, or None where it is null or the schema has none."""
    inner = fields.optional_object("prompting") if version >= _WITH_PROMPTING else None
    if inner is None:
        return None
    prompting = Prompting(
        tokenizer=inner.text("tokenizer"),
        chat_templates=inner.text_mapping("chat_templates"),
        special_tokens=inner.text_mapping("special_tokens"),
        bos_id=inner.optional_number("bos_id"),
        eos_ids=inner.numbers("eos_ids"),
    )
    inner.finish()
    return prompting


def _method(fields: Fields) -> Method:
    method = Method(name=fields.text("name"), program=fields.text("program"), adapter=fields.optional_text("adapter"))
    fields.finish()
    return method


def _cross_check(manifest: Manifest, problems: Problems) -> None:
    paths = [artifact.path for artifact in manifest.artifacts]
    adapters = [adapter.name for adapter in manifest.adapters]
    for field, names in (
        ("artifacts", paths),
        ("adapters", adapters),
        ("methods", [method.name for method in manifest.methods]),
    ):
        for name in _repeated(names):
            problems.add(field, f"lists {name!r} more than once.")
    known, present = set(adapters), set(paths)
    for artifact in manifest.artifacts:
        if artifact.adapter is not None and artifact.adapter not in known:
            problems.add("artifacts", f"gives {artifact.path!r} to adapter {artifact.adapter!r}, which is not listed.")
    for method in manifest.methods:
        if method.program not in present:
            problems.add("methods", f"has {method.name!r} in program {method.program!r}, which is not listed.")
        if method.adapter is not None and method.adapter not in known:
            problems.add("methods", f"has {method.name!r} for adapter {method.adapter!r}, which is not listed.")
    for prompting in (manifest.prompting, *(adapter.prompting for adapter in manifest.adapters)):
        for path in prompting.files if prompting is not None else ():
            if path not in present:
                problems.add("prompting", f"names {path!r}, which is not listed.")
    for adapter in manifest.adapters:
        if manifest.plans and adapter.plan >= len(manifest.plans):
            problems.add("adapters", f"has {adapter.name!r} on plan {adapter.plan} of {len(manifest.plans)}.")


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return sorted({name for name in names if name in seen or seen.add(name)})  # type: ignore[func-returns-value]


def check(manifest: Manifest) -> Sequence[Problem]:
    """Return what would make `manifest` unreadable once written: repeated names, unsafe paths, dangling references."""
    problems = Problems("manifest")
    for artifact in manifest.artifacts:
        unsafe = why_unsafe(artifact.path)
        if unsafe:
            problems.add("artifacts", f"lists {artifact.path!r}, which {unsafe}.")
    _cross_check(manifest, problems)
    return problems.found
