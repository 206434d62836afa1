"""`manifest.json`: its fields, and its JSON Schema."""

from __future__ import annotations

import json

import attrs

from lora_core.adapters.slots.kinds import KINDS
from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.bundle.bundle import SCHEMA_VERSION, Artifact, Branch, BundledAdapter, Manifest, Method
from lora_core.bundle.json_schema import manifest_schema, records_schema
from lora_core.layers import LayerInfo, ModelSummary
from refdocs.markdown import code, doc, page, table
from refdocs.records import annotation

RECORDS = (Manifest, ModelSummary, LayerInfo, SlotPlan, Slot, Artifact, BundledAdapter, Method, Branch)


def manifest_page() -> str:
    """Return the page of the manifest's fields."""
    sections = []
    for cls in RECORDS:
        rows = [[code(each.name), code(annotation(cls, each.name))] for each in attrs.fields(cls)]
        sections.append(f"## `{cls.__name__}`\n\n{doc(cls)}\n\n{table(['field', 'type'], rows)}")
    kinds = [[code(name), doc(kind)] for name, kind in KINDS.items()]
    return page(
        "Fields of the manifest",
        f"Schema version {SCHEMA_VERSION}. The file holds one `Manifest` as a JSON object, with a field `format` "
        "before all others and a field `branches`, an array of `Branch`, after `methods`; every field is present, and "
        "there are no others. A tuple or sequence is an array, a mapping an object. Each branch is a file with the "
        "fields `format`, `schema_version`, `prefix`, `artifacts`, `adapters`, `methods` and `branches` "
        "([`records.schema.json`](records.schema.json)). "
        "[`manifest.schema.json`](manifest.schema.json) says the same as JSON Schema (draft 2020-12); "
        "an installed lora-core has it as `lora_core.bundle.json_schema.manifest_schema()`. What the directory "
        "promises is in [the bundle](bundle-format.md).",
        *sections,
        "## Slot kinds\n\n" + table(["kind", "what it is"], kinds),
    )


def schema_file() -> str:
    """Return the JSON Schema of the manifest as a file."""
    return json.dumps(manifest_schema(), indent=2, ensure_ascii=False) + "\n"


def records_schema_file() -> str:
    """Return the JSON Schema of files of records as a file."""
    return json.dumps(records_schema(), indent=2, ensure_ascii=False) + "\n"
