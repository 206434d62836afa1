"""Chat templates, rendered as transformers does (`transformers/utils/chat_template_utils.py`).

A template comes with a model or an adapter and is a stranger's code (`template_sandbox.py`): whatever goes wrong inside
one is an error of the template and not of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from lora_core.errors import BundleError, UsageError
from lora_core.models.text.rules import read_rules
from lora_core.models.text.stored import StoredText
from lora_core.models.text.templates import DEFAULT, TemplateSource
from lora_core.runtime.template_sandbox import TooMuchError, render

Message = Mapping[str, Any]


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
        try:
            return render(self.source, {**values, **self.special_tokens})
        except Exception as error:
            # A stranger's code: any failure in it is its own.
            raise BundleError(self._problem(error), where=self.where, remedy=_REMEDY) from error

    def takes_system(self, messages: Sequence[Message]) -> bool:
        """Say whether the text of a system message before `messages` changes the prompt; raises as `render`."""
        one, other = (
            self.render([{"role": "system", "content": text}, *messages]) for text in ("Be brief.", "Tell all.")
        )
        return one != other

    def _problem(self, error: Exception) -> str:
        import jinja2

        named = "" if isinstance(error, jinja2.TemplateError | TooMuchError) else f"{type(error).__name__}: "
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
