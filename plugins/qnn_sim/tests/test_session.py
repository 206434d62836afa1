"""A session: switching, the KV cache, modes, and what it says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_core_qnn_sim import errors
from lora_core_qnn_sim.backend import QnnSimBackend

from lora_core.errors import UsageError
from plugins.qnn_sim.tests import tiny

PROMPT = list(range(1, 20))


@pytest.mark.parametrize(
    "options",
    [
        {"quant_updatable": "none"},
        {"quant_updatable": "adapter_only"},
        {"quant_updatable": "all"},
        {"hot_switch": True},
        {"group": ("g=a1,a2",), "quant_updatable": "all"},
        {"group": ("auto",)},
    ],
)
def test_adapters_differ_and_come_back_the_same_in_every_mode(
    tmp_path: Path, model: Any, five: Any, options: dict[str, Any]
) -> None:
    bundle = tiny.export(tiny.make_job(model, five[:3], **options), tmp_path / "out")
    with QnnSimBackend().open(bundle, None) as session:
        first = {name: session.step(name, PROMPT, 0) for name in (None, "a1", "a2", "a3")}
        again = {name: session.step(name, PROMPT, 0) for name in ("a3", "a1", None, "a2")}
    assert all(np.array_equal(first[name], again[name]) for name in again)
    assert len({logits.tobytes() for logits in first.values()}) == 4


def test_feeding_in_chunks_and_singly_gives_the_same_logits(grouped: Any) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        whole = session.step("a2", PROMPT, 0)
        session.reset()
        for position, token in enumerate(PROMPT):
            single = session.step("a2", [token], position)
    assert np.array_equal(whole, single)


def test_a_switch_within_a_group_touches_weights_only_and_across_groups_both(grouped: Any) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        session.load("a1")
        session.load("a2")
        within = session.facts["last switch"]
        session.load("a3")
        across = session.facts["last switch"]
    assert (within["sections"], within["encoding bytes"]) == (1, 0)
    assert across["sections"] == 2
    assert across["encoding bytes"] > 0
    assert across["weight bytes"] == within["weight bytes"]


def test_the_cache_does_not_survive_a_change_of_adapter(grouped: Any) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        session.step("a1", [1, 2, 3], 0)
        with pytest.raises(errors.PositionError):
            session.step("a2", [4], 3)


def test_an_unknown_adapter_is_refused_listing_those_there_are(grouped: Any) -> None:
    with (
        QnnSimBackend().open(grouped, None) as session,
        pytest.raises(UsageError, match="Choices: a1, a2, a3, a4, a5"),
    ):
        session.load("a9")


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory, model: Any, five: Any) -> Any:
    return tiny.export(tiny.make_job(model, five[:2], hot_switch=True), tmp_path_factory.mktemp("hot") / "out")


def test_a_hot_switch_mixes_adapters_at_the_strengths_that_are_asked_for(hot: Any) -> None:
    with QnnSimBackend().open(hot, None) as session:
        first = {name: session.step(name, PROMPT, 0) for name in (None, "a1", "a1@0.5", "a1:0.5+a2:0.5", "a1+a2")}
        assert np.array_equal(session.step("a1:1+a2:0", PROMPT, 0), first["a1"])
        assert np.array_equal(session.step("a1@0", PROMPT, 0), first[None])
    assert len({logits.tobytes() for logits in first.values()}) == 5


def test_a_strength_that_is_set_is_the_adapters_alpha_from_then_on(hot: Any) -> None:
    with QnnSimBackend().open(hot, None) as session:
        weaker, whole = (session.step(name, PROMPT, 0) for name in ("a1@0.5", "a1"))
        session.strength("a1", 0.5)
        assert np.array_equal(session.step("a1", PROMPT, 0), weaker)
        with pytest.raises(errors.AlphaVectorError):
            session.strength("a1", 5.0)
        assert np.array_equal(session.step("a1", PROMPT, 0), weaker)
        session.strength("a1", 1.0)
        assert np.array_equal(session.step("a1", PROMPT, 0), whole)


def test_a_strength_of_the_applied_adapter_needs_no_section(grouped: Any) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        full = session.step("a1", PROMPT, 0)
        weaker = session.step("a1@0.5", PROMPT, 0)
        assert "last switch" not in session.facts
        with pytest.raises(errors.PositionError):
            session.step("a1", [4], len(PROMPT))
        assert not np.array_equal(full, weaker)
        assert np.array_equal(session.step("a1@0", PROMPT, 0), session.step(None, PROMPT, 0))


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ("a1:0.5+a2:0.5", UsageError, "one adapter at a time"),
        ("a9@0.5", UsageError, "no adapter 'a9'"),
        ("a1@3", errors.AlphaVectorError, "between 0 and 2"),
    ],
)
def test_a_selection_that_cannot_run_is_refused_and_changes_nothing(
    grouped: Any, asked: str, error: type[Exception], said: str
) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        before = session.step("a2", PROMPT, 0)
        with pytest.raises(error, match=said):
            session.load(asked)
        after = session.step("a2", PROMPT, 0)
    assert np.array_equal(before, after)


def test_a_session_says_that_it_is_a_simulator(grouped: Any) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        assert "simulator" in session.facts["runtime"]
        assert session.facts["context_len"] == 32


def test_a_base_without_adapters_runs(tmp_path: Path, model: Any) -> None:
    bundle = tiny.export(tiny.make_job(model), tmp_path / "out")
    with QnnSimBackend().open(bundle, None) as session:
        assert session.step(None, PROMPT, 0).shape == (tiny.VOCAB,)


def test_an_adapter_removed_from_a_group_leaves_the_others_usable(grouped: Any) -> None:
    with QnnSimBackend().open(grouped, None) as session:
        whole = session.step("a2", PROMPT, 0)
    with QnnSimBackend().open(grouped, None) as session:
        session.load("a5")
        assert np.array_equal(session.step("a2", PROMPT, 0), whole)
