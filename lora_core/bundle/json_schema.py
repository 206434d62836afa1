"""The JSON Schema of `manifest.json`, made from the classes that the manifest is read into.

Format: https://json-schema.org/draft/2020-12. It says what one manifest looks like on its own; that names are not
repeated and references lead somewhere is checked by `lora_core.bundle.manifest` alone.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.adapters.slots.kinds import KINDS
from lora_core.bundle.bundle import SCHEMA_VERSION, Manifest
from lora_core.bundle.manifest import FORMAT

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
_SAFE_PATH = rf"^(?!manifest\.json$)(?!\.lora-core(/|$))(?!.:){_PART}(/{_PART})*$"
_NARROWER: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("Manifest", "schema_version"): {"const": SCHEMA_VERSION},
    ("Artifact", "path"): {"pattern": _SAFE_PATH},
    ("Artifact", "sha256"): {"pattern": "^[0-9a-f]{64}$"},
    ("Slot", "kind"): {"enum": list(KINDS)},
}
"""What a field's type does not say."""


def manifest_schema() -> dict[str, Any]:
    """Return the schema of the manifests that this lora-core writes, as plain JSON data."""
    definitions: dict[str, Any] = {}
    document = _record(Manifest, definitions)
    document["properties"] = {"format": {"const": FORMAT}, **document["properties"]}
    document["required"] = ["format", *document["required"]]
    return {
        "$schema": DIALECT,
        "title": f"Manifest of a lora-core bundle, schema version {SCHEMA_VERSION}",
        **document,
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
    if origin is tuple:
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
