"""JSON as lora-core writes it: the same value gives the same bytes, one record on a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from lora_core.adapters.slots.plan import Slot, SlotPlan
from lora_core.bundle.entries import Artifact, Branch, BundledAdapter, Method
from lora_core.errors import LoraCoreError
from lora_core.intake.limits import DIGITS
from lora_core.layers import LayerInfo, ModelSummary
from lora_core.prompting import Prompting

_RECORDS = (Artifact, Branch, BundledAdapter, LayerInfo, Method, ModelSummary, Prompting, Slot, SlotPlan)


def plain(value: object, name: str) -> Any:
    """Turn a value into plain JSON data: fields of records in their declared order, keys of mappings sorted.

    Raises `LoraCoreError` naming the field `name` for anything else.
    """
    if value is None or isinstance(value, bool | str) or (isinstance(value, int) and abs(value) < 10**DIGITS):
        return value
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN, which JSON does not have
        return value
    if isinstance(value, _RECORDS):
        return {f.name: plain(getattr(value, f.name), f"{name}.{f.name}") for f in attrs.fields(type(value))}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: plain(value[key], f"{name}.{key}") for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    raise LoraCoreError(f"Manifest field '{name}' holds {value!r}, which is not plain JSON data.", where=name)


def rendered(document: Mapping[str, Any]) -> bytes:
    """Return plain JSON data as a file: two spaces of indentation, a newline at the end.

    A line for each record (a layer, a slot, an artifact) reads and compares well, and the records themselves are left
    to json's fast encoder.
    """
    return ("".join(_render(document)) + "\n").encode()


def _render(value: Any, indent: str = "") -> Iterator[str]:
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
