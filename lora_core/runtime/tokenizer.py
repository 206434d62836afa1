"""Text to tokens and back, with the tokenizer that travels with a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_core.errors import BundleError, UsageError
from lora_core.models.text.calling import tokenizing
from lora_core.models.text.rules import TextRules, read_rules
from lora_core.models.text.stored import TOKENIZER, StoredText
from lora_core.models.text.templates import TemplateSource
from lora_core.models.text.tokenizer import parse_tokenizer
from lora_core.runtime.chat import ChatTemplate, Message
from lora_core.runtime.selection import Selection

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from lora_core.bundle.bundle import Bundle
    from lora_core.prompting import Prompting

TOKENIZER_DIRECTORY = "tokenizer"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def prompted_as(bundle: Bundle, selection: str | None) -> str | None:
    """Return the adapter whose prompting goes with `selection`, as sessions take it; None: the base's does.

    Raises `UsageError` for several adapters that are prompted in different ways.
    """
    names = list(Selection.parse(selection).strengths)
    records = [bundle.manifest.record(name) for name in names]
    own = [None if record is None else record.adapter.prompting for record in records]
    if any(each != own[0] for each in own):
        what = f"The adapters of {selection!r} are prompted in different ways, so nothing says how they are together"
        raise UsageError(what, remedy="Use a bundle whose adapters are prompted as the base, or one adapter.")
    return names[0] if own and own[0] is not None else None


class TextTokenizer:
    """A `tokenizers` tokenizer, with the chat templates that go with it and the ids that end an answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        *,
        templates: Mapping[str, TemplateSource] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        eos_ids: tuple[int, ...] = (),
        where: str = "",
    ) -> None:
        """Take one `template`, or several named `templates` of which `default` is used; they name `special_tokens`.

        `where` is the tokenizer's file, for messages.
        """
        self._tokenizer = tokenizer
        self._where = where
        self._template = template
        self._templates = templates or {}
        self._special_tokens = special_tokens or {}
        self.eos_ids = eos_ids

    @classmethod
    def read(cls, directory: Path, *, config: Mapping[str, Any] | None = None) -> TextTokenizer:
        """Read the tokenizer files in `directory`, those of a model with this `config.json`; raises `BundleError`."""
        stored = StoredText.in_directory(directory, BundleError)
        if not stored.has(TOKENIZER):
            raise _none(directory)
        return cls.of_rules(read_rules(stored, config=config or {}), stored.where(TOKENIZER))

    @classmethod
    def of_bundle(cls, bundle: Bundle, adapter: str | None = None) -> TextTokenizer:
        """Read what `adapter` (None: the base) of `bundle` is prompted with; raises `BundleError`."""
        manifest = bundle.manifest
        record = None if adapter is None else manifest.record(adapter)
        told = (record.adapter.prompting if record is not None else None) or manifest.prompting
        if told is not None:
            return cls._of_prompting(bundle, told)
        tokenizer = cls.read(bundle.path / TOKENIZER_DIRECTORY, config=manifest.base.config)
        tokenizer.eos_ids = tuple(dict.fromkeys((*tokenizer.eos_ids, *manifest.base.eos_ids)))
        return tokenizer

    @classmethod
    def of_rules(cls, rules: TextRules, where: str) -> TextTokenizer:
        """Make a tokenizer of `rules`, read from `where`; raises `BundleError`."""
        assert rules.tokenizer is not None
        return cls(
            parse_tokenizer(rules.tokenizer, where, BundleError),
            templates=rules.templates,
            special_tokens=rules.special_tokens,
            eos_ids=rules.eos_ids,
            where=where,
        )

    @classmethod
    def _of_prompting(cls, bundle: Bundle, told: Prompting) -> TextTokenizer:
        """Read the files that the manifest names, as a runner elsewhere would."""
        stored = StoredText(files={path: bundle.file(path) for path in told.files}, error=BundleError)
        templates = {
            name: TemplateSource(source=stored.text(path), where=stored.where(path))
            for name, path in told.chat_templates.items()
        }
        return cls(
            parse_tokenizer(stored.read(told.tokenizer), stored.where(told.tokenizer), BundleError),
            templates=templates,
            special_tokens=told.special_tokens,
            eos_ids=told.eos_ids,
            where=stored.where(told.tokenizer),
        )

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The template to use, None if there is none; `BundleError` for several without a default."""
        return self._template or ChatTemplate.choose(self._templates, self._special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of `text`, with the special tokens that the tokenizer adds around a text, or without.

        Raises `BundleError` if the tokenizer fails, as a stranger's may.
        """
        with tokenizing(self._where, BundleError, "The tokenizer cannot make tokens of this text"):
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the prompt that asks for an answer to `messages`; `BundleError` without a template."""
        if self.template is None:
            raise BundleError("The model has no chat template", remedy="Use the prompt as it is (--raw).")
        return self.encode(self.template.render(messages), add_special_tokens=False)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        with tokenizing(self._where, BundleError, "The tokenizer cannot make text of these tokens"):
            return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def stream(self) -> TextStream:
        """Return a new stream that turns tokens into text as they come."""
        return TextStream(self)

    def stream_all(self, tokens: Iterable[int]) -> list[str]:
        """Return the pieces of text that a stream gives for `tokens`."""
        stream = self.stream()
        return [*(stream.push(token) for token in tokens), stream.finish()]


def has_tokenizer(bundle: Bundle) -> bool:
    """Say whether the base of `bundle` can be prompted with text."""
    return bundle.manifest.prompting is not None or (bundle.path / TOKENIZER_DIRECTORY / TOKENIZER).is_file()


def _none(directory: Path) -> BundleError:
    return BundleError(
        "There is no tokenizer.json, so text cannot be turned into tokens",
        where=str(directory),
        remedy="Export from a model directory that has one, or give token ids.",
    )


class TextStream:
    """Tokens in, text out; a piece ends where a character does, and all pieces together are the decoded text.

    A token may hold part of a UTF-8 character, or decode differently at the start of a text (a leading space). So each
    piece is the difference of two decodings that start at the same earlier token, and is held back while the text
    ends in the replacement character.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._start = 0
        self._shown = 0

    def push(self, token: int) -> str:
        """Add a token and return the text that is certain now, maybe none."""
        self._tokens.append(token)
        piece = self._pending()
        if piece.endswith(REPLACEMENT) or not piece:
            return ""
        self._start, self._shown = self._shown, len(self._tokens)
        return piece

    def finish(self) -> str:
        """Return what is left, complete or not."""
        piece = self._pending()
        self._start = self._shown = len(self._tokens)
        return piece

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._tokens[self._start : self._shown])
        return self._tokenizer.decode(self._tokens[self._start :])[len(before) :]
