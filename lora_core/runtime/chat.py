"""Chat templates, rendered as transformers does (`transformers/utils/chat_template_utils.py`).

A template comes with a model and is a stranger's code: it runs in jinja's immutable sandbox, as it does there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import BundleError

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
CONFIG = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"


@attrs.frozen(kw_only=True)
class ChatTemplate:
    """A template's source, and the special tokens that it may name (`bos_token`, `eos_token`, ...)."""

    source: str
    special_tokens: Mapping[str, str]
    where: str

    @classmethod
    def read(cls, directory: Path) -> ChatTemplate | None:
        """Read the template of a model's or bundle's tokenizer files; None if it has none.

        `chat_template.jinja` comes before `chat_template` in `tokenizer_config.json`, which is a text, or a list of
        named ones of which `default` is used.
        """
        config = _config(directory)
        tokens = {key: _token_text(value) for key, value in config.items() if key.endswith("_token") and value}
        file = directory / TEMPLATE
        if file.is_file():
            return cls(source=file.read_text(encoding="utf-8"), special_tokens=tokens, where=str(file))
        source = config.get("chat_template")
        if isinstance(source, list):
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        if not isinstance(source, str):
            return None
        return cls(source=source, special_tokens=tokens, where=f"{directory / CONFIG}: chat_template")

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt for `messages` (each with `role` and `content`); raises `BundleError` if that fails."""
        import jinja2

        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            template = _environment().from_string(self.source)
            return template.render(
                messages=plain,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self.special_tokens,
            )
        except jinja2.TemplateError as error:
            raise BundleError(f"The chat template cannot be used: {error}", where=self.where) from error


def _config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"This is not JSON: {error}", where=str(file)) from error
    return config if isinstance(config, dict) else {}


def _token_text(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _environment() -> jinja2.Environment:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_blocks(), loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _generation_blocks() -> type[jinja2.ext.Extension]:
    """Return the extension for `{% generation %}` blocks, which mark the assistant's text for training: shown as is."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationBlocks(Extension):
        tags = {"generation"}  # noqa: RUF012  the base class declares it so

        def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return GenerationBlocks
