"""What the page of families says was exported is what its backend accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from refdocs.families import WINDOW, answer

from lora_core.models.hf import HfModelSource
from lora_core.testing.families import EXPORTED, write_tiny_family


@pytest.mark.parametrize(
    ("backend", "policy"), [(backend, policy) for backend, policies in EXPORTED.items() for policy in policies]
)
def test_families_that_are_exported_are_accepted(tmp_path: Path, backend: str, policy: str) -> None:
    directories = {
        family: write_tiny_family(tmp_path / family, family, sliding_window=WINDOW)
        for family in EXPORTED[backend][policy]
    }
    models = {family: HfModelSource().open(str(directory)) for family, directory in directories.items()}
    assert {family: answer(model, backend, policy) for family, model in models.items()} == dict.fromkeys(models, "")
