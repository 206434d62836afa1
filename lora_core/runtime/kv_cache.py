"""Who owns the KV cache, and how far it is filled: the rule that it never survives a change of adapter."""

from __future__ import annotations

from lora_core.errors import BundleError, UsageError

RESET_ON_ADAPTER_CHANGE = "reset-on-adapter-change"


class KvCache:
    """The state of a session's KV cache.

    One adapter owns it at a time (None: the base). Another adapter has to start again at position 0, and nobody can
    continue past what is filled: attention would read positions that were never written.
    """

    def __init__(self, policy: str, context_len: int, *, rewinds: bool = True) -> None:
        """`policy` is the manifest's; raises `BundleError` for one this version does not know.

        `rewinds` says that tokens may be written over: not where a model keeps a state of all that was fed.
        """
        if policy != RESET_ON_ADAPTER_CHANGE:
            raise BundleError(
                f"The bundle asks for the KV cache policy {policy!r}, which this version does not know",
                where="manifest.json: kv_cache",
                remedy="Use a newer lora-core.",
            )
        self._context_len = context_len
        self._rewinds = rewinds
        self._owner: str | None = None
        self._filled = 0

    @property
    def rewinds(self) -> bool:
        """Whether tokens may be written over."""
        return self._rewinds

    @property
    def owner(self) -> str | None:
        """Who wrote last; None is the base."""
        return self._owner

    @property
    def filled(self) -> int:
        """How many positions the owner has filled."""
        return self._filled

    def reset(self) -> None:
        """Forget everything: the next position is 0, for whichever adapter."""
        self._filled = 0

    def check(self, adapter: str | None, position: int, count: int) -> None:
        """Raise `UsageError` unless `adapter` may write `count` tokens at `position`."""
        if count < 1 or position < 0:
            raise UsageError(f"A step takes at least one token at position 0 or later, not {count} at {position}")
        if position + count > self._context_len:
            raise UsageError(
                f"Tokens {position}..{position + count - 1} do not fit in the context of {self._context_len} tokens",
                remedy="Use a shorter prompt, or export with a larger --max-context-len.",
            )
        if position and self._filled and adapter != self._owner:
            raise UsageError(
                f"The KV cache belongs to {_named(self._owner)}, so {_named(adapter)} cannot continue at {position}",
                remedy="Feed its tokens again from position 0.",
            )
        if position > self._filled:
            raise UsageError(
                f"Position {position} cannot follow a KV cache that is filled to {self._filled}",
                remedy="Feed the tokens before it first.",
            )

        if not self._rewinds and position not in (0, self._filled):
            raise UsageError(
                f"This model keeps a state of all {self._filled} tokens that were fed, so none can follow {position}",
                remedy="Feed the tokens again from position 0.",
            )

    def wrote(self, adapter: str | None, position: int, count: int) -> None:
        """Record that `adapter` wrote `count` tokens at `position`; later positions are no longer filled."""
        self._owner = adapter
        self._filled = position + count


def _named(adapter: str | None) -> str:
    return "the base" if adapter is None else f"adapter {adapter!r}"
