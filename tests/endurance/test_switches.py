"""A session switches between adapters as often as anybody likes: the same answers, and no more memory.

`ENDURANCE=10000 pytest tests/endurance` (or `make endurance`) does as many.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

import lora_core
from lora_core.runtime.memory import measure
from lora_core.testing.tiny import write_tiny_adapter, write_tiny_checkpoint

SWITCHES = int(os.environ.get("ENDURANCE", "100"))
PROMPT = [5, 9, 2]
GROWTH = 8 << 20
"""Bytes of anonymous memory that a process may gain over all switches: allocators keep some of what they free."""


@pytest.mark.parametrize(
    ("backend", "options"),
    [("xnnpack", {"max_context_len": 32, "max_seq_len": 16}), ("qnn_sim", {"context_len": 16, "input_len": 8})],
)
def test_switches_change_nothing(backend: str, options: dict[str, int], tmp_path: Path, lowered_once: Path) -> None:
    model = write_tiny_checkpoint(tmp_path / "model")
    adapters = {name: write_tiny_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("abc", 1)}
    bundle = lora_core.export(
        model,
        adapters=adapters,
        backend=backend,
        out=tmp_path / "bundle",
        options=options,
        max_rank=8,
        targets=["q_proj", "v_proj", "down_proj"],  # as in tests/verification, which lower the same
        cache=lowered_once,
    )
    with lora_core.open(bundle) as session:
        choices = (None, *adapters)
        first = {adapter: np.array(session.step(adapter, PROMPT, 0), copy=True) for adapter in choices}
        assert len({row.tobytes() for row in first.values()}) == len(choices), "every adapter answers otherwise"
        for adapter in choices:
            session.step(adapter, PROMPT, 0)
        before, chance = measure().anonymous, random.Random(backend)
        for _ in range(SWITCHES):
            adapter = chance.choice(choices)
            assert np.array_equal(session.step(adapter, PROMPT, 0), first[adapter])
        assert measure().anonymous - before < GROWTH
