"""The model's own account of what it stores, from files that were damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lora_core_onnx.sharing import external_tensors

from lora_core.errors import BundleError


def test_a_model_that_is_cut_short_is_called_damaged(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "model.onnx").read_bytes()
    cut = tmp_path / "model.onnx"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=r"model.onnx is damaged or foreign"):
        external_tensors(cut)


def test_damage_to_a_model_is_called_damage_or_harmless(bundle: Path, tmp_path: Path) -> None:
    whole = (bundle / "model.onnx").read_bytes()
    damaged, chance, refused = tmp_path / "model.onnx", np.random.default_rng(12), 0
    for place in chance.integers(len(whole) - 8, size=150):
        data = bytearray(whole)
        data[place : place + 4] = chance.bytes(4)
        damaged.write_bytes(data)
        try:
            external_tensors(damaged)
        except BundleError:
            refused += 1
    assert refused > 20
