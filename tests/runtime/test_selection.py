"""What a session is asked for, as text, and which backends are asked for what."""

from __future__ import annotations

import attrs
import pytest

from lora_core.adapters.reference import AdapterReference
from lora_core.capability import Capability
from lora_core.errors import UnsupportedError, UsageError
from lora_core.runtime.selection import Selection, require_selectable
from lora_core.specs import BackendSpec

SPEC = BackendSpec(
    name="plain", summary="", target="", options="", capabilities=frozenset({Capability.EXPORT, Capability.RUN})
)


@pytest.mark.parametrize(
    ("text", "strengths", "needs"),
    [
        (None, {}, None),
        ("pirate", {"pirate": 1.0}, None),
        ("pirate@1", {"pirate": 1.0}, None),
        ("pirate@0.5", {"pirate": 0.5}, Capability.STRENGTH),
        ("pirate@-1e-1", {"pirate": -0.1}, Capability.STRENGTH),
        ("pirate+json", {"pirate": 1.0, "json": 1.0}, Capability.BLEND),
        ("pirate@0.5+json:0.3", {"pirate": 0.5, "json": 0.3}, Capability.BLEND),
        ("pirate@0.5+json@1e+1", {"pirate": 0.5, "json": 10.0}, Capability.BLEND),
        ("pirate@0.5+json", {"pirate": 0.5, "json": 1.0}, Capability.BLEND),
        ("pirate:0.5+json:0.3@2", {"pirate": 1.0, "json": 0.6}, Capability.BLEND),
    ],
)
def test_a_selection_is_read(text: str | None, strengths: dict[str, float], needs: Capability | None) -> None:
    selection = Selection.parse(text)
    assert (selection.strengths, selection.needs) == (strengths, needs)


def test_every_unknown_adapter_is_named() -> None:
    with pytest.raises(UsageError, match=r"'pirat'.*\n.*'jso'|'pirat'[\s\S]*'jso'"):
        Selection.parse("pirat:1+jso:1").require_known(["pirate", "json"])


def test_a_backend_that_declares_nothing_is_asked_for_names_alone() -> None:
    require_selectable([None, "pirate"], SPEC)
    with pytest.raises(UnsupportedError) as refused:
        require_selectable(["pirate@0.5", "shout:0.25", "pirate:0.7+json:0.3"], SPEC)
    told = str(refused.value)
    assert "Backend 'plain' runs adapters at the strength that they were linked at, not 'pirate@0.5'" in told
    assert "--adapter pirate2=DIR@0.5" in told
    assert "--adapter shout2=DIR@0.25" in told
    assert "--adapter mix=DIR/pirate:0.7+DIR/json:0.3" in told


def test_what_a_refused_blend_is_told_to_link_needs_no_other_reference() -> None:
    with pytest.raises(UnsupportedError) as refused:
        require_selectable(["pirate:0.7+json:-0.3"], SPEC)
    (problem,) = refused.value.problems
    reference = AdapterReference.from_text(problem.remedy.rpartition(" ")[2].removesuffix("."))
    assert [(part.of, part.strength) for part in reference.parts] == [("DIR/pirate", 0.7), ("DIR/json", -0.3)]
    assert all(part.is_directory for part in reference.parts)


def test_a_backend_that_declares_strengths_says_itself_what_it_cannot_blend() -> None:
    able = attrs.evolve(SPEC, capabilities=SPEC.capabilities | {Capability.STRENGTH})
    require_selectable(["pirate@0.5", "pirate:0.7+json:0.3"], able)
