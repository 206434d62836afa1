"""What a bundle is compared with: the model and its adapters, computed by other code than what was exported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
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


class ReferenceModel(ABC):
    """The model in float32 with its adapters. `adapter=None` means the base."""

    @property
    @abstractmethod
    def name(self) -> str:
        """What computes it, with versions."""

    @abstractmethod
    def logits(self, adapter: str | None, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the logits after every token of `tokens`, shape (len(tokens), vocab_size), computed at once."""

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
