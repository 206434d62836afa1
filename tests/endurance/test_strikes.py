"""Signals at random instants lose nothing and leave nothing; `make strikes` sends a hundred of each kind."""

from __future__ import annotations

import random
import signal

import pytest

from tests.endurance.stage import Stage
from tests.endurance.strikes import OUTCOMES, Scene


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage.of(tmp_path_factory.mktemp("stage"), "plain")


@pytest.fixture(scope="module")
def scene(stage: Stage) -> Scene:
    return Scene.of(stage, "add")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_command_that_is_struck_has_done_all_or_nothing(scene: Scene, number: signal.Signals) -> None:
    instant = random.Random(f"{scene.command} {number.name}").uniform(0.3, 1.1) * scene.seconds
    assert scene.strike(number, instant) in OUTCOMES
