"""Massive channels are split until the grid holds the rest, and adapters follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora_core_qnn_sim.artifacts.foundation import read_foundation
from lora_core_qnn_sim.backend import QnnSimBackend
from lora_core_qnn_sim.graph.splitting import copies, find_splits

from lora_core.events import ignore
from plugins.qnn_sim.tests import tiny

TARGETS = ("q_proj", "gate_proj", "up_proj", "down_proj")
PRODUCT = "layers.1.mlp.mul.output"


@pytest.fixture(scope="module")
def massive(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.open_model(tiny.write_checkpoint(tmp_path_factory.mktemp("massive") / "model", massive=2000.0))


def test_a_channel_is_split_until_it_is_thirty_two_times_the_median() -> None:
    channels = find_splits({PRODUCT: np.array([1.0, 150.0, 65.0, 0.5, 1.0])})["layers.1.mlp"]
    assert channels.tolist() == [0, 1, 2, 3, 4, 1, 1, 1, 1, 2, 2]
    assert copies(channels).tolist() == [1, 5, 3, 1, 1, 5, 5, 5, 5, 3, 3]


def test_a_layer_without_massive_channels_stays_as_it_is() -> None:
    assert find_splits({PRODUCT: np.array([1.0, 1.0, 31.0])}) == {}


def test_splitting_lets_the_grid_hold_what_a_massive_channel_hides(tmp_path: Path, massive: Any) -> None:
    steps = {}
    for split in (False, True):
        bundle = tiny.export(tiny.make_job(massive, split_outliers=split), tmp_path / str(split))
        foundation = read_foundation(bundle.file("foundation.bin"))
        steps[split] = foundation.encodings[PRODUCT].scale
        assert bool(foundation.basis.splits) == split
    assert steps[True] < steps[False] / 16


def test_adapters_on_split_layers_run_and_link_to_the_bytes_of_a_full_export(tmp_path: Path, massive: Any) -> None:
    two = [tiny.adapter(name, massive.summary, seed=seed, targets=TARGETS) for seed, name in enumerate("ab", 1)]
    full = tiny.export(tiny.make_job(massive, two), tmp_path / "full")
    part = tiny.export(tiny.make_job(massive, two[:1]), tmp_path / "part")
    (tmp_path / "added").mkdir()
    QnnSimBackend().link(part, tiny.placed(part, two[1]), tmp_path / "added", ignore)
    assert (tmp_path / "added/sections/llm_b.bin").read_bytes() == tiny.sections(full)["llm_b.bin"]
    with QnnSimBackend().open(full, None) as session:
        logits = {name: session.step(name, [1, 2, 3, 4], 0) for name in (None, "a", "b")}
    assert len({row.tobytes() for row in logits.values()}) == 3


def test_the_base_for_the_vendors_tools_is_not_split_and_asking_for_it_is_refused(tmp_path: Path, massive: Any) -> None:
    job = tiny.make_job(massive, emit_qairt=tmp_path / "hand")
    assert not read_foundation(tiny.export(job, tmp_path / "out").file("foundation.bin")).basis.splits
    asked = tiny.make_job(massive, emit_qairt=tmp_path / "hand", split_outliers=True)
    assert any("--split-outliers" in str(problem) for problem in QnnSimBackend().check(asked))
