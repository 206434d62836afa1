"""Check of the KV cache: what one text left behind must not reach another, nor one adapter's what another's left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lora_core.errors import UsageError
from lora_core.models.reference_model import Trace
from lora_core.runtime.session import Session
from lora_core.verification.finding import Finding, found

if TYPE_CHECKING:
    import numpy.typing as npt

# The same call on the same state repeats to the last bit on one thread; several threads may add in another order.
_REPEATS = 1e-4


def kv_cache(
    session: Session,
    adapters: Sequence[str | None],
    first: Mapping[str | None, npt.NDArray[np.float32]],
    traces: Mapping[str | None, Trace],
) -> Finding:
    """Replay a text after all others, and try to go on where another text or adapter left off.

    `first` are the logits that each of `adapters` gave along its trace of `traces` before.
    """
    problems = []
    for adapter in reversed(adapters):
        again = follow(session, adapter, traces[adapter], len(first[adapter]))
        if _apart(again, first[adapter]):
            problems.append(f"{_named(adapter)} answers the same text differently after others were asked")
    for adapter in adapters:
        others = [other for other in adapters if other != adapter][:1]
        changes: dict[str, Callable[[Sequence[int]], object]] = {"a reset": lambda _tokens: session.reset()}
        for other in others:
            name = f"a change to {_named(other)} and back"
            changes[name] = lambda tokens, other=other: session.step(other, tokens, 0)  # type: ignore[misc]
        for change, make in changes.items():
            if _remembers(session, adapter, traces[adapter].prompt, make):
                problems.append(f"{_named(adapter)} still attends to an earlier text after {change}")
    return found("kv-cache", "bundle", problems, held="nothing survives a reset, another text or a change of adapter")


def follow(session: Session, adapter: str | None, trace: Trace, count: int) -> npt.NDArray[np.float32]:
    """Feed a prompt at once and then token after token, and return `count` rows of logits."""
    rows = [np.array(session.step(adapter, trace.prompt, 0), copy=True)]
    for index in range(count - 1):
        position = len(trace.prompt) + index
        rows.append(np.array(session.step(adapter, trace.tokens[index : index + 1], position), copy=True))
    return np.stack(rows)


def _remembers(
    session: Session, adapter: str | None, tokens: Sequence[int], change: Callable[[Sequence[int]], object]
) -> bool:
    """Say whether going on after `change` gives logits that depend on the text before it. A refusal remembers nothing.

    The two texts differ in every token but the one that goes on.
    """
    answers: list[npt.NDArray[np.float32] | None] = []
    for text in (tuple(tokens), tuple(reversed([token ^ 1 for token in tokens]))):
        session.reset()
        session.step(adapter, text, 0)
        change(text)
        try:
            answers.append(np.array(session.step(adapter, tokens[-1:], len(text)), copy=True))
        except UsageError:
            answers.append(None)
    session.reset()
    one, other = answers
    if one is None or other is None:
        return one is not other
    return _apart(one, other)


def _apart(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    return not bool(np.abs(one - other).max() <= _REPEATS * max(float(other.std()), 1e-30))


def _named(adapter: str | None) -> str:
    return "the base" if adapter is None else f"adapter {adapter!r}"
