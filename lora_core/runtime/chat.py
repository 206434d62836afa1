"""Chat templates, rendered as transformers does (`transformers/utils/chat_template_utils.py`).

A template comes with a model or an adapter and is a stranger's code: it runs in jinja's immutable sandbox, as it does
there, and whatever goes wrong inside one is an error of the template and not of ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from lora_core.errors import BundleError, UsageError
from lora_core.models.text.rules import read_rules
from lora_core.models.text.stored import StoredText
from lora_core.models.text.templates import DEFAULT, TemplateSource

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
LONGEST = 10_000_000
"""Characters of a prompt; a template that writes more is stopped."""


@attrs.frozen(kw_only=True)
class ChatTemplate:
    """A template's source, and the special tokens that it may name (`bos_token`, `eos_token`, ...)."""

    source: str
    special_tokens: Mapping[str, str]
    where: str

    @classmethod
    def read(cls, directory: Path) -> ChatTemplate | None:
        """Read the default template of a model's tokenizer files; None if it has none. Raises `BundleError`."""
        rules = read_rules(StoredText.in_directory(directory, BundleError), config={})
        return cls.choose(rules.templates, rules.special_tokens)

    @classmethod
    def choose(cls, templates: Mapping[str, TemplateSource], special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """Return the default one of `templates`; None if there are none.

        Raises `BundleError` for several of which none is the default, with their names.
        """
        if not templates:
            return None
        if DEFAULT not in templates:
            where = next(iter(templates.values())).where
            what = f"There are several chat templates ({', '.join(sorted(templates))}) and none is the default"
            remedy = f"Call one of them {DEFAULT!r} before the export, or use the prompt as it is (--raw)."
            raise BundleError(what, where=where, remedy=remedy)
        chosen = templates[DEFAULT]
        return cls(source=chosen.source, special_tokens=special_tokens, where=chosen.where)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Return the prompt for `messages` (each with `role` and `content`).

        Raises `BundleError`, naming the template, for whatever goes wrong inside it.
        """
        plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
        values = {"messages": plain, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        from lora_core.runtime.bounds import bounded  # not needed by anything else that opens a bundle

        try:
            with bounded():
                return self._rendered({**values, **self.special_tokens})
        except Exception as error:
            # A stranger's code: any failure in it is its own.
            raise BundleError(self._problem(error), where=self.where, remedy=_REMEDY) from error

    def _rendered(self, values: Mapping[str, Any]) -> str:
        pieces: list[str] = []
        length = 0
        for piece in _environment().from_string(self.source).generate(**values):
            pieces.append(piece)
            length += len(piece)
            if length > LONGEST:
                raise OverflowError(f"it writes more than {LONGEST:,} characters")
        return "".join(pieces)

    def takes_system(self, messages: Sequence[Message]) -> bool:
        """Say whether the text of a system message before `messages` changes the prompt; raises as `render`."""
        one, other = (
            self.render([{"role": "system", "content": text}, *messages]) for text in ("Be brief.", "Tell all.")
        )
        return one != other

    def _problem(self, error: Exception) -> str:
        import jinja2

        named = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
        line = f" (line {error.lineno})" if isinstance(error, jinja2.TemplateSyntaxError) else ""
        return f"The chat template cannot be used: {named}{error}{line}"


_REMEDY = "Correct the template, or use the prompt as it is (--raw)."


def require_system(template: ChatTemplate | None, messages: Sequence[Message]) -> None:
    """Raise `UsageError` unless `template` takes a system message before `messages`."""
    if template is None:
        what = "There is no chat template, so a system message has no place"
        raise UsageError(what, remedy="Leave --system out, and write it into the prompt.")
    if not template.takes_system(messages):
        what = "The chat template leaves the system message out"
        raise UsageError(what, where=template.where, remedy="Leave --system out, and write it into the prompt.")


def _environment() -> jinja2.Environment:
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols

    from lora_core.runtime.bounds import BoundedEnvironment

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

    environment = BoundedEnvironment(
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
