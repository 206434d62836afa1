"""The generation loop: prompt tokens in, new tokens out, on any session."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Literal

import attrs

from lora_core.errors import UsageError
from lora_core.runtime.sampling import Sampler, Sampling
from lora_core.runtime.session import Session


@attrs.frozen(kw_only=True)
class StopRules:
    """When generation ends: after `max_new_tokens`, at one of `eos_ids`, or when `context_len` tokens are in use."""

    max_new_tokens: int
    context_len: int
    eos_ids: Collection[int] = ()


@attrs.frozen(kw_only=True)
class Generation:
    """What one generation gave. `tokens` are the new tokens without the one that ended it.

    `prefill_seconds` is the time of the step that read the prompt, `first_token_seconds` adds choosing the first token,
    and `decode_seconds` is the time of the `decode_steps` single-token steps.
    """

    prompt_tokens: int
    tokens: tuple[int, ...]
    stopped_by: Literal["eos", "max-new-tokens", "context"]
    prefill_seconds: float
    first_token_seconds: float
    decode_seconds: float
    decode_steps: int


def generate(
    session: Session,
    adapter: str | None,
    prompt: Sequence[int],
    limits: StopRules,
    *,
    held: int = 0,
    sampling: Sampling | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Generation:
    """Generate after `prompt` with `adapter` (None: the base), from position 0.

    The KV cache holds the first `held` tokens of the prompt (at most all but one), which are not read again.
    `on_token` hears each new token as it is chosen. Raises `UsageError` for a prompt that is empty or leaves no room.
    """
    _check(prompt, limits)
    session.load(adapter)
    sampler = Sampler(sampling or Sampling())
    tokens: list[int] = []
    decode_seconds = 0.0
    decode_steps = 0

    start = time.perf_counter()
    logits = session.step(adapter, prompt[held:], held)
    prefill_seconds = time.perf_counter() - start
    token = sampler.pick(logits)
    first_token_seconds = time.perf_counter() - start
    while not (stopped_by := _ending(token, len(prompt), len(tokens), limits)):
        tokens.append(token)
        if on_token is not None:
            on_token(token)
        if stopped_by := _ending(None, len(prompt), len(tokens), limits):
            break
        start = time.perf_counter()
        logits = session.step(adapter, (token,), len(prompt) + len(tokens) - 1)
        decode_seconds += time.perf_counter() - start
        decode_steps += 1
        token = sampler.pick(logits)
    return Generation(
        prompt_tokens=len(prompt),
        tokens=tuple(tokens),
        stopped_by=stopped_by,
        prefill_seconds=prefill_seconds,
        first_token_seconds=first_token_seconds,
        decode_seconds=decode_seconds,
        decode_steps=decode_steps,
    )


def _check(prompt: Sequence[int], limits: StopRules) -> None:
    if not prompt:
        raise UsageError("The prompt is empty")
    if len(prompt) >= limits.context_len:
        raise UsageError(
            f"The prompt has {len(prompt)} tokens, and the bundle was exported for {limits.context_len} in all",
            remedy="Use a shorter prompt, or export with a larger --max-context-len.",
        )


def _ending(
    token: int | None, prompt: int, generated: int, limits: StopRules
) -> Literal["eos", "max-new-tokens", "context"] | None:
    if token in limits.eos_ids:
        return "eos"
    if generated >= limits.max_new_tokens:
        return "max-new-tokens"
    return "context" if prompt + generated >= limits.context_len else None
