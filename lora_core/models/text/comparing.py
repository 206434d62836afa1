"""How an adapter's text differs from its base's, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import attrs

from lora_core.errors import InputError
from lora_core.models.text.rules import TextRules
from lora_core.models.text.stored import TOKENIZER
from lora_core.models.text.tokenizer import parse_tokenizer

_SHOWN = 4


@attrs.frozen(kw_only=True)
class TextDifference:
    """What an adapter brings that its base does not have: `says` in words, `beyond` tokens without a row in the base.

    `rules` are the adapter's, with the base's tokenizer where that is the same one stored in another form.
    """

    rules: TextRules
    says: tuple[str, ...]
    beyond: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, slots=False)
class TextComparison:
    """What adapters are compared with: the rules of a base whose embedding has `vocab_size` rows (None: unknown)."""

    base: TextRules
    vocab_size: int | None

    def of(self, own: TextRules) -> TextDifference:
        """Compare the rules of an adapter with the base's."""
        base = self.base
        says: list[str] = []
        beyond: tuple[str, ...] = ()
        if own.templates != base.templates:
            says.append("a chat template" if not base.templates else "another chat template")
        if own.tokenizer is not None and own.tokenizer != base.tokenizer:
            mine = _canonical(own.tokenizer)
            if mine == self._theirs:
                own = attrs.evolve(own, tokenizer=base.tokenizer)
            says += _tokenizers(mine, self._theirs)
            beyond = self._beyond(mine)
        says += _special_tokens(own, base) or _further(own, base)
        return TextDifference(rules=own, says=tuple(says), beyond=beyond)

    @cached_property
    def _theirs(self) -> dict[str, Any]:
        return {} if self.base.tokenizer is None else _canonical(self.base.tokenizer)

    def _beyond(self, document: Mapping[str, Any]) -> tuple[str, ...]:
        if self.vocab_size is None:
            return ()
        return tuple(text for text, known in _added(document).items() if known >= self.vocab_size)


def _special_tokens(own: TextRules, base: TextRules) -> list[str]:
    """Say which special tokens are others, of those that matter: what ends a text, and what a template uses."""
    eos, theirs = own.special_tokens.get("eos_token"), base.special_tokens.get("eos_token")
    if eos is not None and eos != theirs:
        return [f"the end-of-text token {eos!r}" + (f" (the base has {theirs!r})" if theirs else "")]
    named = sorted(name for name, text in own.special_tokens.items() if base.special_tokens.get(name) != text)
    used = [name for name in named if any(name in template.source for template in own.templates.values())]
    return [f"another {', '.join(used)}"] if used else []


def _further(own: TextRules, base: TextRules) -> list[str]:
    return [] if set(own.eos_ids) == set(base.eos_ids) else ["further ids that end a text"]


def _canonical(data: bytes) -> dict[str, Any]:
    """Return what a tokenizer.json means: `tokenizers` writes one thing in several forms, by its version."""
    document: dict[str, Any] = json.loads(parse_tokenizer(data, TOKENIZER, InputError).to_str())
    return {name: value for name, value in document.items() if name not in ("version", "padding", "truncation")}


def _tokenizers(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[str]:
    if mine == theirs:
        return
    if not theirs:
        yield "a tokenizer"
        return
    if mine["model"].get("vocab") != theirs["model"].get("vocab"):
        yield "another vocabulary"
    known, own = _added(theirs), _added(mine)
    new = [text for text, number in own.items() if known.get(text) != number]
    if new:
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        yield f"added tokens ({', '.join(map(repr, new[:_SHOWN]))}{more})"
    elif mine["model"].get("vocab") == theirs["model"].get("vocab"):
        yield "other rules of tokenization"


def _added(document: Mapping[str, Any]) -> dict[str, int]:
    return {entry["content"]: entry["id"] for entry in document.get("added_tokens", [])}
