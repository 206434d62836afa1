"""The mark of an adapter that was fitted to a rounded base: a field of the metadata of its weights file.

It stands in the file of A and B because it is true of these numbers alone; peft reads no metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from lora_core.errors import AdapterError
from lora_core.intake.files import open_regular
from lora_core.intake.limits import HEADER, raised
from lora_core.intake.plain_json import parse_json

FITTED_FOR = "lora_core.fitted_for"
ORIGINAL = "original"
"""The directory inside of a fitted adapter's that has the adapter it was made of."""
_ALIGNMENT = 8


def fitted_for(weights: Path) -> str | None:
    """Return the foundation that a safetensors file, which the library has found right, says it was fitted for."""
    with open_regular(weights, AdapterError) as file:
        head = file.read(min(int.from_bytes(file.read(8), "little"), raised(HEADER)))
    if FITTED_FOR.encode() not in head:  # most are not, and their headers have been read
        return None
    fields = parse_json(head).get("__metadata__")
    told = fields.get(FITTED_FOR) if isinstance(fields, dict) else None
    return told if isinstance(told, str) else None


def marked(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Return the safetensors file `data` with this metadata, in the order of its names.

    By hand and not with the library: it writes several fields in an order that differs from one run to the next.
    """
    length = int.from_bytes(data[:8], "little")
    header = parse_json(data[8 : 8 + length])
    document = {**header, "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(dict(sorted(document.items())), separators=(",", ":")).encode("ascii")
    text = text.ljust(-(-len(text) // _ALIGNMENT) * _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]
