"""What an export's options ask for, and what stands against it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora_core.events import ignore
from lora_core.models.base import ModelHandle
from lora_core.models.hf import HfModelSource
from lora_core.preparation.rounding import Rounding
from lora_core.quant.fitting import as_stored
from lora_core.quant.policies import POLICIES, parse_policy
from lora_core.quant.policy import Assignment
from lora_core.testing.tiny import write_tiny_checkpoint

REGISTRY = {policy.name: policy for policy in POLICIES}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelHandle:
    return HfModelSource().open(str(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))))


def rounding(kind: Any = "compensated", calibration: str | None = None) -> Rounding:
    return Rounding(kind=kind, calibration=calibration, narrow=as_stored)


def assigned(model: ModelHandle, policy: str = "8da4w") -> Assignment:
    return parse_policy(policy, REGISTRY).assign(model.summary.layers)


def whats(problems: Any) -> list[str]:
    return [problem.what for problem in problems]


def test_nothing_stands_against_rounding_4_bits(tiny: ModelHandle):
    assert rounding().problems(tiny, assigned(tiny)) == []


def test_calibration_for_the_nearest_integers_is_refused(tiny: ModelHandle):
    (what,) = whats(rounding("nearest", "prompts.txt").problems(tiny, assigned(tiny)))
    assert what == "--calibration is for --rounding importance and compensated, and weights are rounded to the nearest"


@pytest.mark.parametrize("policy", ["fp32", "8da8w"])
def test_a_policy_without_4_bits_has_nothing_to_round(tiny: ModelHandle, policy: str):
    (what,) = whats(rounding().problems(tiny, assigned(tiny, policy)))
    assert "no linear layer 4 bits" in what


def test_prompts_that_cannot_be_read_are_told_before_the_work(tiny: ModelHandle, tmp_path: Path):
    (what,) = whats(rounding(calibration=str(tmp_path / "none.json")).problems(tiny, assigned(tiny)))
    assert "Cannot read the calibration ids" in what


@pytest.mark.parametrize("kind", ["importance", "compensated"])
def test_layers_are_given_for_as_long_as_the_block_lasts(tiny: ModelHandle, tmp_path: Path, kind: str):
    ids = tmp_path / "ids.json"
    ids.write_text("[[1, 5, 9, 4], [7, 7]]")
    (tmp_path / "work").mkdir()
    with rounding(kind, str(ids)).layers(tiny, assigned(tiny), tmp_path / "work", ignore) as layers:
        assert layers is not None
        assert len(layers.names) == 14  # seven in each of two blocks; the head keeps 8 bits
        integers, scales = layers.rows("model.layers.1.mlp.down_proj", 60)
        assert (integers.shape, scales.shape) == ((4, 96), (4, 3))
    assert list((tmp_path / "work").iterdir()) == []
