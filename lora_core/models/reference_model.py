"""What a bundle is compared with: the model and its adapters, computed by other code than what was exported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@attrs.frozen(kw_only=True)
class Trace:
    """Logits along one text: after `prompt`, and after each token of `tokens` but the last.

    `logits` has shape (len(tokens), vocab_size); row i predicts `tokens[i]`. The tokens are the reference's own greedy
    choice, so that both sides always see the same text.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: npt.NDArray[np.float32]


@attrs.frozen(kw_only=True)
class ReferenceTemplate:
    """A chat template as a reference renders it: its source, and the special tokens that it may name."""

    source: str
    special_tokens: Mapping[str, str]


class ReferenceText(ABC):
    """The tokens of a model, or of an adapter that is prompted otherwise, made by other code than ours."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What makes them, with versions."""

    @property
    @abstractmethod
    def eos_id(self) -> int | None:
        """The id of the tokenizer's own end of text, if it has one."""

    @property
    def template(self) -> ReferenceTemplate | None:
        """What `encode_chat` renders without bounds, so that it can be looked at first; None if there is none."""
        return None

    @abstractmethod
    def encode(self, text: str) -> tuple[int, ...]:
        """Return the tokens of `text`, with the special tokens that go around it."""

    @abstractmethod
    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...] | None:
        """Return the tokens of the prompt that asks for an answer to `messages`; None if no template makes one."""


class ReferenceModel(ABC):
    """The model in float32 with its adapters. `adapter=None` means the base."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What computes it, with versions."""

    @abstractmethod
    def logits(self, adapter: str | None, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits after every token of `tokens`, shape (len(tokens), vocab_size), computed at once."""

    def unloaded(self, adapter: str) -> Sequence[str]:  # noqa: ARG002 - for others
        """Return what this reference lacks of `adapter`, in words: numbers compared with it would mean nothing."""
        return ()

    def continuation(self, adapter: str | None, prompt: Sequence[int], count: int) -> tuple[int, ...]:
        """Return the `count` tokens that greedy generation continues `prompt` with, past any end of text."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(adapter, tokens)[-1].argmax()))
        return tuple(tokens[len(prompt) :])

    def trace(self, adapter: str | None, prompt: Sequence[int], count: int) -> Trace:
        """Return the logits along `prompt` and its greedy continuation of `count` tokens."""
        tokens = self.continuation(adapter, prompt, count)
        logits = self.logits(adapter, (*prompt, *tokens[:-1]))
        return Trace(prompt=tuple(prompt), tokens=tokens, logits=logits[len(prompt) - 1 :])
