"""Text to tokens and back, with the tokenizer that travels with a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_core.errors import BundleError
from lora_core.runtime.chat import ChatTemplate, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_DIRECTORY = "tokenizer"
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextTokenizer:
    """A `tokenizers` tokenizer, and the chat template of its model if it has one."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | None = None) -> None:
        self._tokenizer = tokenizer
        self.template = template

    @classmethod
    def read(cls, directory: Path) -> TextTokenizer:
        """Read `tokenizer.json` and the chat template in `directory`; raises `BundleError`."""
        from tokenizers import Tokenizer

        file = directory / "tokenizer.json"
        if not file.is_file():
            raise BundleError(
                "There is no tokenizer.json, so text cannot be turned into tokens",
                where=str(directory),
                remedy="Export from a model directory that has one, or give token ids.",
            )
        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            raise BundleError(f"The tokenizer cannot be read: {error}", where=str(file)) from error
        return cls(tokenizer, ChatTemplate.read(directory))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the tokens of `text`, with the special tokens that the tokenizer adds around a text, or without."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of the prompt that asks for an answer to `messages`; `BundleError` without a template."""
        if self.template is None:
            raise BundleError("The model has no chat template", remedy="Use the prompt as it is (--raw).")
        return self.encode(self.template.render(messages), add_special_tokens=False)

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `tokens`; bytes that are no UTF-8 become U+FFFD."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    def stream(self) -> TextStream:
        """Return a new stream that turns tokens into text as they come."""
        return TextStream(self)

    def stream_all(self, tokens: Iterable[int]) -> list[str]:
        """Return the pieces of text that a stream gives for `tokens`."""
        stream = self.stream()
        return [*(stream.push(token) for token in tokens), stream.finish()]


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
