"""The reader against peft itself: the same modules, the same change of weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from peft.tuners.lora import LoraLayer

from lora_core.adapters.peft.format import PeftFormat
from lora_core.adapters.slots.kinds import extent_of
from lora_core.layers import ModelSummary
from tests.adapters.peft_cases import CASES, PeftCase, peft_model, summary_of, tiny_model
from tests.numeric import apart, tolerance


@cache
def _base(family: str) -> ModelSummary:
    return summary_of(tiny_model(family), family)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reader_computes_what_peft_computes(case: PeftCase, tmp_path: Path) -> None:
    oracle = {
        name: module.get_delta_weight("default").detach().double().numpy()
        for name, module in peft_model(case, tmp_path).get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }

    adapter = PeftFormat().read("tested", tmp_path, _base(case.family))

    assert {update.module for update in adapter.updates} == oracle.keys()
    for update in adapter.updates:
        delta = update.scaling * (
            update.tensors["b"].read().astype(np.float64) @ update.tensors["a"].read().astype(np.float64)
        )
        # PEFT multiplies in float32, and scales: its own rounding is all that may differ.
        assert apart(delta, oracle[update.module]) <= tolerance(extent_of(update).rank + 1)


def test_there_are_at_least_forty_cases_of_distinct_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40
