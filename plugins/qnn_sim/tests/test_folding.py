"""Names that stand for the tensors of many layers."""

from __future__ import annotations

import numpy as np
import pytest
from lora_core_qnn_sim.artifacts.folding import fold, unfold


def test_tensors_come_back_from_their_folded_names() -> None:
    layers = {f"layers.{number}.w": np.full(2, number) for number in (0, 1, 2, 5)}
    folded = fold({**layers, "norm": np.ones(3)})
    assert set(folded) == {"layers.{0-2,5}.w", "norm"}
    unfolded = unfold(folded)
    assert {name: array.tolist() for name, array in unfolded.items()} == {
        **{name: array.tolist() for name, array in layers.items()},
        "norm": [1.0, 1.0, 1.0],
    }


@pytest.mark.parametrize("runs", ["0-999999999", "0-999999999999999999", "0,0-99999999,7", "5-1"])
def test_a_name_that_stands_for_other_layers_than_its_tensor_has_is_refused(runs: str) -> None:
    with pytest.raises(ValueError, match="names"):
        unfold({f"layers.{{{runs}}}.w": np.zeros((3, 2))})


def test_rows_without_elements_are_no_way_to_a_million_tensors() -> None:
    with pytest.raises(ValueError, match="stand for more than"):
        unfold({f"layers.{{0-599999}}.{name}": np.zeros((600_000, 0)) for name in "ab"})
