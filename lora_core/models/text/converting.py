"""A `tokenizer.json` made of a tokenizer that is stored otherwise, by transformers' own converter."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import ModelError
from lora_core.models.text.rules import TextRules, read_rules
from lora_core.models.text.stored import StoredText
from lora_core.temporary import temporary_directory

SENTENCEPIECE = "tokenizer.model"


@attrs.frozen(kw_only=True)
class Conversion:
    """What a tokenizer became, and what to tell of it; the rules have no tokenizer if it became none."""

    rules: TextRules
    told: tuple[str, ...]


def convert(directory: Path, what: str, *, config: Mapping[str, Any], gguf_file: str | None = None) -> Conversion:
    """Return the rules of the tokenizer in `directory` (inside `gguf_file` of it, if given), `what` in words.

    `config` is the model's `config.json`.
    """
    if importlib.util.find_spec("transformers") is None:
        return _failed(f"transformers, which would convert {what}, is not installed", config)
    from lora_core.models.transformers_text import load_tokenizer

    with temporary_directory("tokenizer") as scratch:
        try:
            load_tokenizer(directory, gguf_file).save_pretrained(scratch)
            rules = read_rules(StoredText.in_directory(scratch, ModelError), config=config)
        except Exception as error:  # noqa: BLE001  told: an export without text is better than none
            return _failed(f"transformers cannot convert {what}: {error}", config)
    told = f"The bundle's tokenizer.json is made of {what} by transformers' own converter."
    return Conversion(rules=rules, told=(told,))


def _failed(why: str, config: Mapping[str, Any]) -> Conversion:
    rules = read_rules(StoredText(files={}, error=ModelError), config=config)
    return Conversion(rules=rules, told=(f"There is no tokenizer.json to write: {why}.",))
