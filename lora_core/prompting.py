"""How text becomes tokens for a base or an adapter, as data: files of the bundle, special tokens, ids."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen(kw_only=True)
class Prompting:
    """All that a runner needs to prompt a base or an adapter.

    `tokenizer` is an artifact in the format of Hugging Face's `tokenizers`, ready to use: it neither pads nor cuts, and
    has all added tokens. `chat_templates` are artifacts with Jinja source by name; `default` is the one to use.
    `special_tokens` are what templates may name (`bos_token`, `eos_token`, ...), `eos_ids` the ids that end an answer.
    """

    tokenizer: str
    chat_templates: Mapping[str, str] = attrs.field(factory=dict)
    special_tokens: Mapping[str, str] = attrs.field(factory=dict)
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        """The artifacts that it names."""
        return tuple(dict.fromkeys((self.tokenizer, *self.chat_templates.values())))
