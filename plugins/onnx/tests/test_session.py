"""Sessions: adapters at strengths and several at once, and what they refuse."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
from lora_core_onnx.session import OnnxSession

import lora_core
from lora_core.errors import UsageError
from tests.numeric import apart, decoder_tolerance

TOKENS = [1, 5, 9, 4]
TOLERANCE = decoder_tolerance(layers=2, hidden=64, inner=96, context=4, rank=7)


@pytest.mark.parametrize(
    ("selection", "linked"),
    [("alice@0.5", "alice@0.5"), ("alice:0.7+bob:-0.4", "alice:0.7+bob:-0.4"), ("bob@0", None)],
)
def test_a_selection_computes_what_is_linked_so(
    bundle: Path, sources: dict[str, Path], tmp_path: Path, selection: str, linked: str | None
) -> None:
    from lora_core.adapters.reference import AdapterReference

    name = None
    if linked is not None:
        text = "linked=" + "+".join(
            part.replace("alice", str(sources["alice"])).replace("bob", str(sources["bob"]))
            for part in linked.split("+")
        )
        name = "linked"
        lora_core.export(
            sources["model"],
            adapters=[AdapterReference.from_text(text)],
            backend="onnx",
            out=tmp_path / "linked",
            options={"max_context_len": 32},
        )
    with lora_core.open(bundle if name is None else tmp_path / "linked") as other:
        expected = other.step(name, TOKENS, 0)
    with lora_core.open(bundle) as session:
        found = session.step(selection, TOKENS, 0)
        plain = session.step("alice", TOKENS, 0)
    assert apart(found, expected) <= TOLERANCE
    assert apart(found, plain) > 100 * TOLERANCE


def test_an_adapter_at_full_strength_is_the_adapter(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        assert np.array_equal(session.step("alice@1", TOKENS, 0), session.step("alice", TOKENS, 0))


def test_another_strength_starts_a_text_anew(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        session.step("alice", TOKENS, 0)
        with pytest.raises(UsageError, match="belongs to adapter 'alice'"):
            session.step("alice@0.5", [7], len(TOKENS))


def test_a_strength_stays_until_another_is_set_and_counts_in_blends(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        asked = {each: session.step(each, TOKENS, 0) for each in ("alice", "alice@0.5", "alice:0.25+bob:1.0")}
        session.strength("alice", 0.5)
        assert np.array_equal(session.step("alice", TOKENS, 0), asked["alice@0.5"])
        assert np.array_equal(session.step("alice:0.5+bob", TOKENS, 0), asked["alice:0.25+bob:1.0"])
        session.strength("alice", 1)
        assert np.array_equal(session.step("alice", TOKENS, 0), asked["alice"])


def test_a_strength_that_is_set_starts_a_text_anew(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        session.step("alice", TOKENS, 0)
        session.strength("alice", 0.5)
        with pytest.raises(UsageError, match=r"cannot follow a KV cache|belongs to adapter"):
            session.step("alice", [7], len(TOKENS))


def test_setting_a_strength_keeps_the_model_and_no_second_copy_of_the_adapter(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        assert isinstance(session, OnnxSession)
        session.load("alice")
        model = session.engine
        session.strength("alice", 0.5)
        assert session.engine is model
        session.unload("alice")  # the last
        assert session.engine is None


@pytest.mark.parametrize(("name", "strength"), [("carol", 0.5), ("alice", float("nan")), ("alice@0.5", 0.5)])
def test_a_strength_that_cannot_be_is_refused(bundle: Path, name: str, strength: float) -> None:
    with lora_core.open(bundle) as session, pytest.raises(UsageError, match=r"no adapter|finite number"):
        session.strength(name, strength)


def test_weights_in_stored_order_compute_the_same(bundle: Path) -> None:
    with lora_core.open(bundle) as session, lora_core.open(bundle, options={"prepack": "off"}) as plain:
        assert (session.facts["prepack"], plain.facts["prepack"]) == (True, False)
        assert apart(plain.step("alice", TOKENS, 0), session.step("alice", TOKENS, 0)) <= TOLERANCE


def test_an_adapter_that_was_unloaded_is_loaded_again_with_an_empty_cache(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        before = session.step("alice", TOKENS, 0)
        session.unload("alice")
        session.unload("alice")  # which is loaded no more
        with pytest.raises(UsageError, match="cannot follow a KV cache"):
            session.step("alice", [7], len(TOKENS))
        assert np.array_equal(session.step("alice", TOKENS, 0), before)


def test_unloading_keeps_what_another_selection_takes_part_of(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        blend = session.step("alice:0.7+bob:-0.4", TOKENS, 0)
        session.load("alice")
        session.unload("alice")
        session.unload(None)  # was never loaded
        assert np.array_equal(session.step("alice:0.7+bob:-0.4", TOKENS, 0), blend)


def test_a_base_of_which_everything_is_unloaded_is_released_and_loaded_again(bundle: Path) -> None:
    with lora_core.open(bundle) as session:
        assert isinstance(session, OnnxSession)
        before = session.step(None, TOKENS, 0)
        model = weakref.ref(session.engine)
        session.unload(None)
        gc.collect()
        assert model() is None
        assert np.array_equal(session.step(None, TOKENS, 0), before)


def test_all_unknown_adapters_of_a_blend_are_named(bundle: Path) -> None:
    with lora_core.open(bundle) as session, pytest.raises(UsageError, match=r"'carol'[\s\S]*'dave'"):
        session.load("alice:0.5+carol:0.3+dave:0.2")
