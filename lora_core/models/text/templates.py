"""The chat templates that files hold, by name.

After transformers 5.23 (`_from_pretrained` and `save_chat_templates`): templates in files of their own come before
those of `tokenizer_config.json`, which holds one, or a list of named ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from lora_core.models.text.stored import CONFIG, TEMPLATE, TEMPLATES, StoredText

DEFAULT = "default"


@attrs.frozen(kw_only=True)
class TemplateSource:
    """Jinja source, and the file it stands in."""

    source: str
    where: str = attrs.field(eq=False)


def read_templates(stored: StoredText) -> dict[str, TemplateSource]:
    """Return the templates of `stored`; raises its error for files that are no text and lists of another form."""
    found = {}
    if stored.has(TEMPLATE):
        found[DEFAULT] = TemplateSource(source=stored.text(TEMPLATE), where=stored.where(TEMPLATE))
    for name in stored.files:
        if name.startswith(f"{TEMPLATES}/"):
            called = name.removeprefix(f"{TEMPLATES}/").removesuffix(".jinja")
            found[called] = TemplateSource(source=stored.text(name), where=stored.where(name))
    if found or not stored.has(CONFIG):
        return found
    where = f"{stored.where(CONFIG)}: chat_template"
    told = _told(stored.object(CONFIG).get("chat_template"))
    if told is None:
        raise stored.error("A chat template is a text, or a list of texts with a name each", where=where)
    return {name: TemplateSource(source=source, where=where) for name, source in told.items()}


def _told(value: Any) -> Mapping[str, str] | None:
    """Return the templates of a configuration's field; None if it is of no known form."""
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        if not all(isinstance(each, Mapping) and {"name", "template"} <= each.keys() for each in value):
            return None
        value = {each["name"]: each["template"] for each in value}
    if not isinstance(value, Mapping):
        return None
    known = all(isinstance(name, str) and isinstance(source, str) for name, source in value.items())
    return dict(value) if known else None
