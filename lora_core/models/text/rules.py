"""What a model's or an adapter's files say about text, as one value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from lora_core.models.text.special_tokens import read_special_tokens
from lora_core.models.text.stored import ADDED_TOKENS, CONFIG, GENERATION, SPECIAL_TOKENS, TOKENIZER, StoredText
from lora_core.models.text.templates import TemplateSource, read_templates
from lora_core.models.text.tokenizer import TokenizerDocument, extend_tokenizer, read_tokenizer


@attrs.frozen(kw_only=True)
class TextRules:
    """How text becomes tokens, and which of them end an answer.

    `tokenizer` holds the bytes of a `tokenizer.json` that is ready to use (None: there is none). `eos_ids` are those of
    the generation configuration and the tokenizer's own.
    """

    tokenizer: bytes | None
    special_tokens: Mapping[str, str]
    templates: Mapping[str, TemplateSource]
    bos_id: int | None
    eos_ids: tuple[int, ...]


def read_rules(stored: StoredText, *, config: Mapping[str, Any]) -> TextRules:
    """Read what the files of a base say; `config` is its `config.json`. Raises the error of `stored`."""
    document = read_tokenizer(stored, _model_type(config)) if stored.has(TOKENIZER) else None
    generation = stored.object(GENERATION)
    eos = [*_ids(generation.get("eos_token_id"))] or [*_ids(config.get("eos_token_id"))]
    eos += _own(document, "eos_token")
    bos = [*_own(document, "bos_token"), *_ids(generation.get("bos_token_id")), *_ids(config.get("bos_token_id"))]
    return TextRules(
        tokenizer=document.data if document is not None else None,
        special_tokens=document.special_tokens if document is not None else read_special_tokens(stored, {}).named,
        templates=read_templates(stored),
        bos_id=bos[0] if bos else None,
        eos_ids=tuple(dict.fromkeys(eos)),
    )


def read_rules_over(stored: StoredText, base: TextRules, *, config: Mapping[str, Any]) -> TextRules:
    """Read what the files of an adapter say; where they say nothing, `base` counts. Raises the error of `stored`.

    An adapter's tokenizer.json brings special tokens of its own; without one they are added to the base's. What ends an
    answer of the base still ends one: an adapter adds its own end of text.
    """
    told = stored.object(GENERATION)
    eos = [*_ids(told.get("eos_token_id"))]
    document: TokenizerDocument | None = None
    if stored.has(TOKENIZER):
        document = read_tokenizer(stored, _model_type(config))
    elif stored.has(CONFIG, SPECIAL_TOKENS, ADDED_TOKENS) and base.tokenizer is not None:
        document = extend_tokenizer(base.tokenizer, base.special_tokens, stored)
    rules = attrs.evolve(base, templates=read_templates(stored) or base.templates)
    if document is not None:
        bos = _own(document, "bos_token")
        rules = attrs.evolve(
            rules,
            tokenizer=document.data,
            special_tokens=document.special_tokens,
            bos_id=bos[0] if bos else base.bos_id,
        )
        if document.special_tokens.get("eos_token") != base.special_tokens.get("eos_token"):
            eos += _own(document, "eos_token")
    return attrs.evolve(rules, eos_ids=tuple(dict.fromkeys((*eos, *base.eos_ids))))


def _own(document: TokenizerDocument | None, name: str) -> list[int]:
    return [document.ids[name]] if document is not None and name in document.ids else []


def _ids(value: object) -> Iterator[int]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int) and not isinstance(item, bool):
            yield item


def _model_type(config: Mapping[str, Any]) -> str | None:
    told = config.get("model_type")
    return told if isinstance(told, str) else None
