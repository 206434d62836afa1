"""What a bundle is compared with: the model and its adapters, computed by other code than what was exported."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lora_core.adapters.adapter import Adapter
from lora_core.adapters.reference import AdapterReference
from lora_core.errors import UnsupportedError, UsageError
from lora_core.models.base import ModelHandle
from lora_core.verification.numbers import Trace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Kind = Literal["auto", "transformers", "eager"]
KINDS: tuple[Kind, ...] = ("auto", "transformers", "eager")


class Reference(ABC):
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


def make_reference(
    kind: Kind,
    model: ModelHandle,
    references: Sequence[AdapterReference],
    adapters: Sequence[Adapter],
    *,
    length: int,
) -> Reference:
    """Return the reference for texts of up to `length` tokens; `adapters` are what `references` were read as.

    `auto` is transformers (with peft if there are adapters) where it is installed and `model` is a checkpoint, else
    our own eager module. Raises `UsageError` or `UnsupportedError` if the one asked for is impossible.
    """
    from lora_core.models.hf import HfModel

    if kind not in KINDS:
        raise UsageError(f"There is no reference {kind!r}.", remedy=f"Choices: {', '.join(KINDS)}.")
    wanted = ("transformers", "peft") if references else ("transformers",)
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if kind == "transformers" and missing:
        raise UnsupportedError(f"{' and '.join(missing)} is not installed.", remedy="Install it, or use eager.")
    if kind == "transformers" and not isinstance(model, HfModel):
        raise UnsupportedError("transformers cannot open this model: it is no checkpoint.", remedy="Use eager.")
    if kind != "eager" and not missing and isinstance(model, HfModel):
        from lora_core.verification.transformers_reference import TransformersReference

        return TransformersReference(model.directory, references)
    from lora_core.verification.eager_reference import EagerReference

    return EagerReference(model, adapters, length=length)
