"""A conversation with the methods of a session: its messages, and what of them the KV cache still holds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

import attrs

from lora_core.errors import UsageError
from lora_core.runtime.chat import Message, require_system
from lora_core.runtime.generation import Generation, StopRules, generate
from lora_core.runtime.run import RunSettings, context_len
from lora_core.runtime.session import Session
from lora_core.runtime.tokenizer import TextTokenizer, prompted_as


@attrs.frozen(kw_only=True)
class Turn:
    """One answer. `held` tokens of its prompt were in the KV cache already, and were not read again."""

    adapter: str | None
    text: str
    held: int
    generation: Generation


class Conversation:
    """Messages of a user and of any methods of a session, whose chat templates make the prompts.

    What the KV cache holds of a prompt is not read again while the same adapter answers; another one reads all of it,
    because no cache survives a change of adapter. No other calls may go to the session meanwhile.
    """

    def __init__(
        self, session: Session, settings: RunSettings | None = None, *, tokenizer: TextTokenizer | None = None
    ) -> None:
        """Begin with the base. Each adapter is prompted as the bundle says of it, or all with `tokenizer` if given."""
        self._session = session
        self._settings = settings or RunSettings()
        self._given = tokenizer
        self._tokenizers: dict[str | None, TextTokenizer] = {}
        self._adapter: str | None = None
        self._messages: list[Message] = []
        self._cached: tuple[str | None, list[int]] = (None, [])
        self.forget()

    @property
    def adapter(self) -> str | None:
        """Who answers; None is the base."""
        return self._adapter

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages, each with `role` and `content`."""
        return tuple(self._messages)

    def use(self, adapter: str | None) -> None:
        """Let `adapter` answer from now on; raises `UsageError` for a name that is unknown or takes no conversation."""
        self._session.load(adapter)
        tokenizer = self._tokenizer(adapter)
        if tokenizer.template is None:
            raise UsageError("There is no chat template, so there is no conversation", remedy="Leave --chat out.")
        if self._settings.system is not None:
            require_system(tokenizer.template, [{"role": "user", "content": ""}])
        self._adapter = adapter

    def forget(self) -> None:
        """Begin anew, with the system message alone."""
        system = self._settings.system
        self._messages = [] if system is None else [{"role": "system", "content": system}]

    def say(self, text: str, on_text: Callable[[str], None] = lambda _piece: None) -> Turn:
        """Say `text` and return the answer, of which `on_text` hears each piece as it comes.

        Both become part of the conversation. Raises `UsageError` if it no longer fits; it is then as it was.
        """
        tokenizer = self._tokenizer(self._adapter)
        messages: list[Message] = [*self._messages, {"role": "user", "content": text}]
        prompt = tokenizer.encode_chat(messages)
        held = self._held(prompt)
        limits = StopRules(
            max_new_tokens=self._settings.max_new_tokens,
            context_len=context_len(self._session),
            eos_ids=tokenizer.eos_ids or self._session.bundle.manifest.base.eos_ids,
        )
        stream = tokenizer.stream()
        pieces: list[str] = []

        def show(piece: str) -> None:
            if piece:
                pieces.append(piece)
                on_text(piece)

        self._cached = (self._adapter, [])  # should the answer end half way
        generation = generate(
            self._session,
            self._adapter,
            prompt,
            limits,
            held=held,
            sampling=self._settings.sampling,
            on_token=lambda token: show(stream.push(token)),
        )
        show(stream.finish())
        self._cached = (self._adapter, [*prompt, *generation.tokens])
        answer = "".join(pieces)
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        return Turn(adapter=self._adapter, text=answer, held=held, generation=generation)

    def _held(self, prompt: list[int]) -> int:
        """Return how many tokens of `prompt` the cache holds; the last one is always read, for its logits."""
        adapter, cached = self._cached
        if adapter != self._adapter:
            return 0
        # The last token of an answer was chosen and never fed.
        equal = takewhile(lambda pair: pair[0] == pair[1], zip(cached[:-1], prompt, strict=False))
        return min(sum(1 for _ in equal), len(prompt) - 1)

    def _tokenizer(self, adapter: str | None) -> TextTokenizer:
        if self._given is not None:
            return self._given
        name = prompted_as(self._session.bundle, adapter)
        if name not in self._tokenizers:
            self._tokenizers[name] = TextTokenizer.of_bundle(self._session.bundle, name)
        return self._tokenizers[name]
