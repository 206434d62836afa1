"""Calls into the `tokenizers` library with a stranger's tokenizer: what goes wrong in them is the file's fault.

The library raises plain exceptions for an unknown token without a token for those, and ends in a panic of Rust, which
is no `Exception`, for a decoder that cuts more than there is, or an expression that matches in too many ways.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_core.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GROWTH = 10_000
"""How many characters the replacements of a tokenizer may make of one, all together."""
_PANIC = "PanicException"
_REMEDY = "Save it again with transformers (AutoTokenizer.from_pretrained(...).save_pretrained), or copy it anew."


@contextmanager
def tokenizing(where: str, error: type[InputError], what: str) -> Iterator[None]:
    """Run a block that calls the library; raises `error` saying `what` cannot be done for whatever it raises."""
    try:
        yield
    except BaseException as cause:
        # Classes of their own are about what the library was handed, which is no fault of the file.
        if type(cause) not in (Exception, ValueError) and type(cause).__name__ != _PANIC:
            raise
        raise error(f"{what}: {str(cause)[:300]}", where=where, remedy=_REMEDY) from cause


def require_bounded(tokenizer: Tokenizer) -> None:
    """Raise `ValueError` if its normalizer or its decoder can make more than `GROWTH` characters of one."""
    for part in (tokenizer.normalizer, tokenizer.decoder):
        if part is None:
            continue
        if (times := _growth(json.loads(part.__getstate__()))) > GROWTH:
            raise ValueError(f"its replacements make {times:.3g} characters of one, {GROWTH} at most are made")


def _growth(part: object) -> float:
    if isinstance(part, list):
        product = 1.0
        for each in part:
            product *= _growth(each)
        return product
    if not isinstance(part, Mapping):
        return 1.0
    if part.get("type") == "Replace":
        pattern, content = part.get("pattern"), part.get("content")
        plain = pattern.get("String") if isinstance(pattern, Mapping) else None
        # An expression may match nothing, before every character.
        return max(1.0, len(content) / len(plain) if plain else len(content) + 1.0) if isinstance(content, str) else 1.0
    return _growth([part.get("normalizers"), part.get("decoders")])
