"""What a check of the conformance kit is, and how it says what it found."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from lora_core.capability import Capability
from lora_core.errors import LoraCoreError
from lora_core.testing.verdict import Broken
from lora_core.testing.workshop import Workshop


@attrs.frozen(kw_only=True)
class Check:
    """One claim about a backend. `run` returns if it holds and raises `Broken` or `Unchecked` if not.

    `id` is stable: command lines and lists of known gaps name it. It is checked where `applies` says so of what the
    backend declares.
    """

    id: str
    claim: str
    run: Callable[[Workshop], None]
    applies: Callable[[Workshop], bool] = lambda _: True


def links(workshop: Workshop) -> bool:
    """Say whether the backend declares that it can link."""
    return workshop.links


def runs(workshop: Workshop) -> bool:
    """Say whether the backend declares that it can run or evaluate a bundle."""
    return workshop.runs


def selects(capability: Capability) -> Callable[[Workshop], bool]:
    """Return what says whether a backend runs, and declares `capability` of its sessions."""
    return lambda workshop: workshop.runs and capability in workshop.spec.capabilities


def expect_refusal(kind: type[LoraCoreError], attempt: Callable[[], object], what: str) -> None:
    """Raise `Broken` unless `attempt`, which `what` describes, raises an error of class `kind`."""
    try:
        attempt()
    except kind:
        return
    except LoraCoreError as error:
        raise Broken(f"{what} raises {type(error).__name__}, not {kind.__name__}: {error}") from error
    raise Broken(f"{what} is accepted; it should raise {kind.__name__}")
