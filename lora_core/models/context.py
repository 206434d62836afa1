"""How many tokens a base can be exported for: the same rule for every backend."""

from __future__ import annotations

from lora_core.errors import Problem


def usual_context(usual: int, *limits: int | None) -> int:
    """Return the context of an export that was not asked for one: `usual`, or the shortest of `limits` if it is less.

    None limits nothing.
    """
    return min((usual, *(limit for limit in limits if limit is not None)))


def context_problems(
    asked: int | None, option: str, *, trained: int | None, window: int | None = None
) -> list[Problem]:
    """Return what stands against a context of `asked` tokens, given by `option` (None: it was not given).

    A base knows no positions beyond those it was `trained` for; `window` is its sliding attention window, for a backend
    that attends to all that it holds.
    """
    if asked is None:
        return []
    reasons = {"the base's": trained, "the base's sliding attention window of": window}
    words, limit = min(
        ((words, limit) for words, limit in reasons.items() if limit is not None),
        key=lambda each: each[1],
        default=("", asked),
    )
    if asked <= limit:
        return []
    return [
        Problem(
            what=f"{option} {asked} is more than {words} {limit} tokens", remedy=f"Give at most {limit}.", where=option
        )
    ]
