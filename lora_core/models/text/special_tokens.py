"""Special and added tokens as transformers finds them.

After transformers 5.23: `PreTrainedTokenizerBase._from_pretrained` (tokenization_utils_base.py), which knows two
layouts. A `tokenizer_config.json` with `added_tokens_decoder` says everything; else `special_tokens_map.json` counts
before it, and added tokens are those of `added_tokens.json` and `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs

from lora_core.models.text.stored import ADDED_TOKENS, CONFIG, SPECIAL_TOKENS, StoredText

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@attrs.frozen(kw_only=True)
class Token:
    """A token as `tokenizers.AddedToken` takes it; flags that were not told are None."""

    content: str
    flags: Mapping[str, bool]


@attrs.frozen(kw_only=True)
class SpecialTokens:
    """`named` are texts by name (`eos_token`), `added` tokens by id, `more` tokens that have to be there and have no
    name.
    """

    named: Mapping[str, str]
    added: Mapping[int, Token]
    more: tuple[str, ...]


def read_special_tokens(stored: StoredText, document: Mapping[str, Any]) -> SpecialTokens:
    """Read the special tokens of `stored`, whose tokenizer.json holds `document` (empty without one)."""
    config = stored.object(CONFIG)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    extra = extra if isinstance(extra, Mapping | list) else []
    named = _named(config)
    if isinstance(extra, Mapping):
        named |= _texts(extra)
    if isinstance(config.get("added_tokens_decoder"), Mapping):
        added = dict(_numbered(config["added_tokens_decoder"].items()))
    else:
        told = stored.object(SPECIAL_TOKENS)
        named |= _named(told)
        if not isinstance(extra, Mapping) and isinstance(told.get("extra_special_tokens"), list):
            extra = [*extra, *told["extra_special_tokens"]]
        added = dict(_legacy(stored, set(named.values())))
        entries = document.get("added_tokens")
        told_of = entries if isinstance(entries, list) else []
        added |= _numbered((entry.get("id"), entry) for entry in told_of if isinstance(entry, Mapping))
    more = [] if isinstance(extra, Mapping) else [text for each in extra if (text := _content(each)) is not None]
    return SpecialTokens(named=named, added=added, more=tuple(more))


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    return _texts({name: value for name, value in config.items() if name.endswith("_token")})


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: text for name, value in values.items() if (text := _content(value)) is not None}


def _content(token: object) -> str | None:
    """Return a token's text, which is stored plainly or as an `AddedToken` dictionary."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _numbered(entries: Any) -> Iterator[tuple[int, Token]]:
    for known, entry in entries:
        content = _content(entry)
        if content is not None and str(known).isdigit():
            flags = {flag: entry[flag] for flag in _FLAGS if isinstance(entry.get(flag), bool)}
            yield int(known), Token(content=content, flags=flags)


def _legacy(stored: StoredText, special: set[str]) -> Iterator[tuple[int, Token]]:
    for content, known in stored.object(ADDED_TOKENS).items():
        if isinstance(known, int):
            flags = {"normalized": content not in special, "special": content in special}
            yield known, Token(content=content, flags=flags)
