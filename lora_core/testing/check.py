"""What a check of the conformance kit is, and how it says what it found."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import attrs

from lora_core.errors import LoraCoreError
from lora_core.testing.workshop import Workshop

T = TypeVar("T")


class Broken(Exception):
    """A claim does not hold; the message says how."""


class Unavailable(Exception):
    """The machine cannot show whether the claim holds; the message says why."""


@attrs.frozen(kw_only=True)
class Check:
    """One claim about a backend. `run` returns if it holds and raises `Broken` or `Unavailable` if not.

    It is checked where `applies` says so of what the backend declares.
    """

    name: str
    claim: str
    run: Callable[[Workshop], None]
    applies: Callable[[Workshop], bool] = lambda _: True


def expect_refusal(kind: type[LoraCoreError], attempt: Callable[[], object], otherwise: str) -> None:
    """Raise `Broken` with `otherwise` unless `attempt` raises an error of class `kind`."""
    try:
        attempt()
    except kind:
        return
    except LoraCoreError as error:
        raise Broken(f"{otherwise}: {type(error).__name__}: {error}") from error
    raise Broken(otherwise)
