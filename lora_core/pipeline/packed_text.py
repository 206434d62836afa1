"""What an adapter says about prompting, as text in its package's fields."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from lora_core.bundle.bundle import Bundle
from lora_core.bundle.durable import storage_errors
from lora_core.errors import AdapterError, BundleError
from lora_core.intake.files import read_regular
from lora_core.intake.limits import TOKENIZER
from lora_core.intake.plain_json import parse_json
from lora_core.models.text.rules import TextRules
from lora_core.models.text.templates import TemplateSource
from lora_core.prompting import Prompting

_TOKENIZER, _RECORD, _TEMPLATE = "tokenizer", "record", "template/"


def packed(bundle: Bundle, prompting: Prompting) -> dict[str, str]:
    """Return the fields for `prompting`, whose files are in `bundle`."""

    def content(path: str) -> str:
        with storage_errors("read", bundle.file(path)):
            return read_regular(bundle.file(path), TOKENIZER, BundleError).decode("utf-8", "replace")

    base = bundle.manifest.prompting
    return packed_fields(prompting, None if base is None else base.tokenizer, content)


def packed_fields(prompting: Prompting, base_tokenizer: str | None, content: Callable[[str], str]) -> dict[str, str]:
    """Return the fields for `prompting`; `content` gives the text of a file.

    The tokenizer is among them only if it is not `base_tokenizer`, the base's.
    """
    told = {"special_tokens": prompting.special_tokens, "bos_id": prompting.bos_id, "eos_ids": prompting.eos_ids}
    fields = {_RECORD: json.dumps(told, sort_keys=True, separators=(",", ":"))}
    fields |= {f"{_TEMPLATE}{name}": content(path) for name, path in prompting.chat_templates.items()}
    if prompting.tokenizer != base_tokenizer:
        fields[_TOKENIZER] = content(prompting.tokenizer)
    return fields


def unpacked(fields: Mapping[str, str], base: TextRules, path: Path) -> TextRules | None:
    """Return the rules that `packed` was given, None if there are none; raises `AdapterError` naming `path`."""
    if not fields:
        return None
    try:
        told = parse_json(fields[_RECORD])
        templates = {
            name.removeprefix(_TEMPLATE): TemplateSource(source=text, where=f"{path}: {name}")
            for name, text in fields.items()
            if name.startswith(_TEMPLATE)
        }
        tokenizer = fields[_TOKENIZER].encode() if _TOKENIZER in fields else base.tokenizer
        tokens = {str(name): str(token) for name, token in told["special_tokens"].items()}
        bos_id = None if told["bos_id"] is None else int(told["bos_id"])
        eos_ids = tuple(int(each) for each in told["eos_ids"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"What the package says about prompting is wrong: {type(error).__name__}: {error}."
        raise AdapterError(what, where=str(path), remedy="Pack the adapter again.") from error
    if tokenizer is None:
        return None
    return TextRules(tokenizer=tokenizer, special_tokens=tokens, templates=templates, bos_id=bos_id, eos_ids=eos_ids)
