"""Strengths that names have from now on."""

from __future__ import annotations

import pytest

from lora_core.errors import UnsupportedError, UsageError
from lora_core.runtime.strengths import Strengths
from tests.runtime.conftest import CountingSession


def told(**own: float) -> Strengths:
    strengths = Strengths()
    for name, strength in own.items():
        strengths.set(name, strength, {"pirate", "json"}, "bundle")
    return strengths


@pytest.mark.parametrize(
    ("text", "means"),
    [
        (None, None),
        ("json", "json"),
        ("json@0.3", "json@0.3"),
        ("pirate", "pirate@0.5"),
        ("pirate@0.5", "pirate@0.25"),
        ("pirate:2+json:0.3", "pirate:1.0+json:0.3"),
    ],
)
def test_a_selection_counts_the_strengths_of_its_adapters(text: str | None, means: str | None) -> None:
    assert told(pirate=0.5).applied(text) == means


def test_a_strength_of_one_is_none() -> None:
    strengths = told(pirate=0.5)
    strengths.set("pirate", 1, {"pirate"}, "bundle")
    assert strengths.applied("pirate") == "pirate"


def test_unknown_adapters_and_strengths_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(UsageError, match="no adapter 'pirat'"):
        told(pirat=0.5)
    with pytest.raises(UsageError, match="finite number, not inf"):
        told(pirate=float("inf"))


def test_a_session_whose_adapters_were_linked_at_their_strength_says_what_to_link(session: CountingSession) -> None:
    with pytest.raises(UnsupportedError, match=r"linked at, so 'ab' cannot have 0\.5.*--adapter ab2=DIR@0\.5"):
        session.strength("ab", 0.5)
