"""The tokenizer files of a Hugging Face directory, and the ids that begin and end a text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lora_core.models.base import TokenizerFiles

FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


def tokenizer_files(directory: Path) -> TokenizerFiles | None:
    """Return the tokenizer files that `directory` has, or None if it has no tokenizer."""
    files = tuple(directory / name for name in FILES if (directory / name).is_file())
    if not any(path.name in ("tokenizer.json", "tokenizer.model") for path in files):
        return None
    return TokenizerFiles(files=files)


def bos_id(directory: Path, config: Mapping[str, Any]) -> int | None:
    """Return the id that begins a text: the generation configuration's, else the model configuration's."""
    for source in (read_json(directory / "generation_config.json"), config):
        if isinstance(source.get("bos_token_id"), int):
            return int(source["bos_token_id"])
    return None


def eos_ids(directory: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids that end a text: those of the generation configuration (else of the model configuration), and
    the tokenizer's own end-of-text token, which for chat models may be another.
    """
    generation = read_json(directory / "generation_config.json")
    ids = [*_ids(generation.get("eos_token_id"))] or [*_ids(config.get("eos_token_id"))]
    token = _content(read_json(directory / "tokenizer_config.json").get("eos_token"))
    if token is not None:
        ids += [known for known, content in _special_tokens(directory) if content == token]
    return tuple(dict.fromkeys(ids))


def _ids(value: object) -> Iterator[int]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, int):
            yield item


def _content(token: object) -> str | None:
    """Return a token's text, which is stored plainly or as an `AddedToken` dictionary."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _special_tokens(directory: Path) -> Iterator[tuple[int, str]]:
    decoder = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        listed = [(known, token) for known, token in decoder.items() if str(known).isdigit()]
    else:
        added = read_json(directory / "tokenizer.json").get("added_tokens") or []
        listed = [(token.get("id"), token) for token in added if isinstance(token, Mapping)]
    for known, token in listed:
        content = _content(token)
        if content is not None and known is not None:
            yield int(known), content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in `path`; empty if there is none or it is not readable as one."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}
