"""What the page of families says was exported is what its backend accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from refdocs.families import WINDOW, answer

from lora_core.models.hf import HfModelSource
from lora_core.testing.families import EXPORTED, TINY_FAMILIES, write_tiny_family


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_family_that_is_exported_is_accepted(tmp_path: Path, family: str) -> None:
    model = HfModelSource().open(str(write_tiny_family(tmp_path / family, family, sliding_window=WINDOW)))
    exported = [(b, policy) for b, policies in EXPORTED.items() for policy, some in policies.items() if family in some]
    assert exported
    assert {answer(model, backend, policy) for backend, policy in exported} == {""}
