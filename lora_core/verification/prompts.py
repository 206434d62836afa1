"""Prompts to compare on: the caller's, else a few texts, else token ids drawn with a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence

from lora_core.bundle.bundle import Bundle
from lora_core.errors import UsageError
from lora_core.runtime.tokenizer import TextTokenizer, has_tokenizer

TEXTS = (
    "What is the capital of France?",
    "Once upon a time there was a ship, and its captain",
    "def add(a, b):\n    return",
    "List three fruits and their colours as JSON:",
)
_DRAWN = (5, 3, 8, 6)
"""Lengths of drawn prompts: of several lengths, so that a cache that is not reset shows."""
_SHORTEST_CONTEXT = 4


def make_prompts(bundle: Bundle, texts: Sequence[str], *, context_len: int, tokens: int) -> list[tuple[int, ...]]:
    """Return prompts as token ids, each with room for `tokens` more in `context_len`; longer texts are cut.

    Raises `UsageError` if there is no room, or if texts are given and the bundle has no tokenizer.
    """
    room = context_len - tokens
    if room < _SHORTEST_CONTEXT:
        raise UsageError(
            f"{tokens} new tokens leave no room for a prompt in a context of {context_len}",
            remedy=f"Ask for at most {context_len - _SHORTEST_CONTEXT}.",
        )
    with_text = has_tokenizer(bundle)
    if texts and not with_text:
        raise UsageError("The bundle has no tokenizer, so it cannot be prompted with text", remedy="Leave it out.")
    if with_text:
        tokenizer = TextTokenizer.of_bundle(bundle)
        encoded = [tuple(tokenizer.encode(text))[:room] for text in texts or TEXTS]
        if not all(encoded):
            raise UsageError("A prompt is empty")
        return encoded
    import numpy as np

    vocabulary = bundle.manifest.base.vocab_size
    if vocabulary is None:
        raise UsageError(
            "The bundle has no tokenizer and does not say how many tokens there are",
            remedy="Export a module of your own with ModuleModel(vocab_size=...).",
        )
    chance = np.random.default_rng(0)
    return [tuple(int(token) for token in chance.integers(vocabulary, size=min(size, room))) for size in _DRAWN]
