"""The JSON Schemas of `manifest.json` and of files of records, made from the classes that they are read into.

Format: https://json-schema.org/draft/2020-12. It says what one manifest looks like on its own; that names are not
repeated and references lead somewhere is checked by `lora_core.bundle.manifest` alone.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from lora_core.adapters.slots.kinds import KINDS
from lora_core.bundle.bundle import SCHEMA_VERSION, Artifact, Branch, BundledAdapter, Manifest, Method
from lora_core.bundle.manifest import FORMAT
from lora_core.bundle.records import FORMAT as RECORDS_FORMAT

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SCALARS: Mapping[Any, Mapping[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer", "minimum": 0},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    Any: {},
}
# What `lora_core.bundle.paths.why_unsafe` refuses, as one expression.
_PART = r"(?!\.{1,2}(/|$))[^/\\\u0000]+"
_SAFE_PATH = rf"^(?!manifest\.json$)(?!manifest(/|$))(?!\.lora-core(/|$))(?!.:){_PART}(/{_PART})*$"
_PREFIX = "^[0-9a-f]{1,64}$"
_NARROWER: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("Manifest", "schema_version"): {"const": SCHEMA_VERSION},
    ("Artifact", "path"): {"pattern": _SAFE_PATH},
    ("Artifact", "sha256"): {"pattern": "^[0-9a-f]{64}$"},
    ("Branch", "prefix"): {"pattern": _PREFIX},
    ("Branch", "sha256"): {"pattern": "^[0-9a-f]{64}$"},
    ("Slot", "kind"): {"enum": list(KINDS)},
}
"""What a field's type does not say."""


def manifest_schema() -> dict[str, Any]:
    """Return the schema of the manifests that this lora-core writes, as plain JSON data."""
    definitions: dict[str, Any] = {}
    document = _record(Manifest, definitions)
    properties = {"format": {"const": FORMAT}}
    for name, schema in document["properties"].items():
        properties[name] = schema
        if name == "methods":
            properties["branches"] = _type(Sequence[Branch], definitions)
    title = f"Manifest of a lora-core bundle, schema version {SCHEMA_VERSION}"
    return _document(title, properties, definitions) | {"description": document["description"]}


def records_schema() -> dict[str, Any]:
    """Return the schema of files of records (`manifest/*.json`) that this lora-core writes, as plain JSON data."""
    definitions: dict[str, Any] = {}
    properties = {
        "format": {"const": RECORDS_FORMAT},
        "schema_version": {"const": SCHEMA_VERSION},
        "prefix": {"type": "string", "pattern": _PREFIX},
        "artifacts": _type(Sequence[Artifact], definitions),
        "adapters": _type(Sequence[BundledAdapter], definitions),
        "methods": _type(Sequence[Method], definitions),
        "branches": _type(Sequence[Branch], definitions),
    }
    return _document(f"Records of a lora-core bundle, schema version {SCHEMA_VERSION}", properties, definitions)


def _document(title: str, properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "$schema": DIALECT,
        "title": title,
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        "$defs": dict(sorted(definitions.items())),
    }


def _record(cls: type[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in attrs.fields(cls)]
    return {
        "description": " ".join(inspect.cleandoc(cls.__doc__ or "").split()),
        "type": "object",
        "properties": {
            name: {**_type(hints[name], definitions), **_NARROWER.get((cls.__name__, name), {})} for name in names
        },
        "required": names,
        "additionalProperties": False,
    }


def _type(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one annotation; records are put into `definitions` and referred to."""
    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_type(each, definitions) for each in arguments]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (tuple, Sequence):
        return {"type": "array", "items": _type(arguments[0], definitions)}
    if origin is Mapping:
        values = _type(arguments[1], definitions)
        return {"type": "object", "additionalProperties": values} if values else {"type": "object"}
    if attrs.has(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}  # a record may hold its own kind
            definitions[hint.__name__] = _record(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    raise TypeError(f"a manifest cannot hold {hint!r}")
