"""What is written has the same bytes on every processor: golden digests of tiny bundles.

A digest that differs on another processor only is a fault of the code; find the sum or function that decides. One that
differs everywhere is a change of the bytes we write: if it is wanted, `python -m tests.processors.golden --write`
makes `golden.json` anew (see there for what it refuses), and the changelog tells users.
"""

import json
from pathlib import Path

import pytest

from tests.processors import cases, golden

pytestmark = pytest.mark.processors


@pytest.fixture(scope="module")
def recorded() -> golden.Digests:
    return json.loads(golden.FILE.read_text("utf-8"))


def test_the_tools_are_those_whose_bytes_were_recorded() -> None:
    assert golden.wrong_tools() == []
    assert golden.pinned().keys() >= {"torch", "executorch", "torchao", "numpy"}


def test_nothing_recorded_is_left_untested(recorded: golden.Digests) -> None:
    tested = {f"weights {name}" for name, _ in golden.WEIGHTS} | {f"bundle {name}" for name, _ in golden.BUNDLES}
    assert recorded.keys() == {"rotary tables", *tested}


def test_rotary_tables(recorded: golden.Digests) -> None:
    assert cases.table_digests() == recorded["rotary tables"]


@pytest.mark.parametrize("name", cases.WEIGHTS)
def test_quantized_weights(name: str, tmp_path: Path, recorded: golden.Digests) -> None:
    assert cases.weight_digests(cases.WEIGHTS[name], tmp_path / "made") == recorded[f"weights {name}"]


@pytest.mark.parametrize("name", cases.SIMULATED)
def test_calibrated_bundles_of_the_simulator(name: str, tmp_path: Path, recorded: golden.Digests) -> None:
    assert cases.bundle_digests(cases.SIMULATED[name], tmp_path / "made") == recorded[f"bundle {name}"]


@pytest.mark.parametrize("name", cases.LOWERED)
def test_lowered_bundles(name: str, tmp_path: Path, recorded: golden.Digests) -> None:
    assert cases.bundle_digests(cases.LOWERED[name], tmp_path / "made") == recorded[f"bundle {name}"]
