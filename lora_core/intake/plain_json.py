"""JSON of strangers: one value for each key, finite numbers, text that can be written again, bounded in depth."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from lora_core.errors import LoraCoreError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import DEPTH, DIGITS


def parse_json(data: bytes | str, *, digits: int = DIGITS) -> Any:
    """Return the value of a JSON text.

    Raises `ValueError` saying what is wrong with it: besides what is no JSON, repeated keys, `NaN` and infinities,
    whole numbers of more than `digits` digits (by default those of 64 bits), halves of surrogate pairs, and more than
    `DEPTH` levels.
    """
    text = data if isinstance(data, str) else data.decode("utf-8")
    whole = partial(_int, limit=digits)
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=whole
        )
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from None
    if _depth_above(text, DEPTH):
        raise ValueError(f"it is nested deeper than {DEPTH} levels")
    if "\\u" in text and _has_half(value):
        raise ValueError("it holds one half of a surrogate pair, which is no character")
    return value


def read_json(path: Path, limit: int, error: type[LoraCoreError], *, links: bool = True, remedy: str = "") -> Any:
    """Return the value in a JSON file of at most `limit` bytes; raises `error`, and `OSError` as `open` does."""
    data = read_regular(path, limit, error, links=links)
    try:
        return parse_json(data)
    except ValueError as wrong:
        raise error(f"This is not JSON that can be read: {wrong}.", where=str(path), remedy=remedy) from wrong


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"it has {max(keys, key=keys.count)[:60]!r} more than once in one object")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which JSON does not have")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"it holds {digits[:60]}, which is too large for a number")
    return value


def _int(digits: str, *, limit: int) -> int:
    if len(digits) > limit and len(digits.lstrip("-")) > limit:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)


def _depth_above(text: str, limit: int) -> bool:
    """Say whether brackets are nested deeper than `limit`; exact, and quick for what is not."""
    if text.count("{") + text.count("[") <= limit:
        return False
    # All but brackets and quotes goes. If nothing is left at the end, each pair of quotes was a string without any.
    left = text.encode("utf-8", "surrogatepass").translate(None, _NOT_STRUCTURE).replace(b'""', b"")
    for _ in range(limit):
        left = left.replace(b"[]", b"").replace(b"{}", b"")
        if not left:
            return False
    return _counted_depth(text) > limit


_NOT_STRUCTURE = bytes(set(range(256)) - set(b'[]{}"\\'))


def _counted_depth(text: str) -> int:
    depth = deepest = 0
    inside = escaped = False
    for character in text:
        if inside:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                inside = False
        elif character == '"':
            inside = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _has_half(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            pending += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            pending += item
        elif isinstance(item, str) and any("\ud800" <= character <= "\udfff" for character in item):
            return True
    return False
